"""Findings that only all cases together show: splits, modalities, classes, sizes, copies."""

import collections

from keras_unigan.config import SPLITS
from keras_unigan.data import preprocessing
from keras_unigan.data.checks import duplicates, voxels
from keras_unigan.data.checks.findings import of_study
from keras_unigan.errors import did_you_mean

_UNBALANCED = 3.0


def table(entries, modalities):
    """Modality -> split (or "none") -> number of cases."""
    counts = collections.Counter((e.case.modality, e.case.split or "none") for e in entries)
    return {
        m: {s: counts[m, s] for s in (*SPLITS, "none") if s != "none" or counts[m, s]}
        for m in modalities
    }


def split_findings(cases_of):
    """Findings on who is in which split.

    Args:
        cases_of: What `table` returns.
    """
    for modality in [m for m, row in cases_of.items() if not sum(row.values())]:
        yield of_study(
            "KUG-D14", "error", f"no case of modality {modality!r}", "one at least",
            fix="remove it from modalities in study.json, or add cases",
        )  # fmt: skip
    used = {m: row for m, row in cases_of.items() if sum(row.values())}
    bare = sum(row.get("none", 0) for row in used.values())
    if bare:
        yield of_study(
            "KUG-D14", "warning", f"{bare} cases without a split", "train, val or test",
            "They are not prepared.", "unigan init makes splits",
        )  # fmt: skip
    if used and not any(row["train"] or row["val"] or row["test"] for row in used.values()):
        return
    for split, level in (("train", "error"), ("val", "warning"), ("test", "info")):
        empty = [m for m, row in used.items() if not row[split]]
        if empty:
            yield of_study(
                "KUG-D14", level, f"no {split} case of {', '.join(empty)}", "one at least",
                fix="unigan init with other --fractions, or move subjects",
            )  # fmt: skip
    counts = {m: row["train"] for m, row in used.items() if row["train"]}
    if len(counts) > 1 and max(counts.values()) >= _UNBALANCED * min(counts.values()):
        mean = sum(counts.values()) / len(counts)
        yield of_study(
            "KUG-D29", "warning",
            "training cases " + ", ".join(f"{m} {n}" for m, n in counts.items()),
            f"less than {_UNBALANCED:g} times as many of one modality as of another",
            "Batches take the modalities in turn, which is as if cases had the weights "
            + ", ".join(f"{m} {mean / n:.2g}" for m, n in counts.items())
            + "; the few are seen over and over.",
            "add cases of the rare modality, or train longer with --set train.augment=standard",
        )  # fmt: skip


def modality_findings(modalities):
    """Findings on the list of modalities."""
    if len(modalities) == 1:
        yield of_study(
            "KUG-D26", "warning", f"one modality, {modalities[0]!r}", "two or more",
            "Unpaired training and translation need two.",
            "train a model of one modality: unigan train shards --model joint",
        )  # fmt: skip
    for modality in modalities:
        if modality not in voxels.KNOWN:
            hint = did_you_mean(modality, voxels.KNOWN)
            yield of_study(
                "KUG-D26", "info", f"modality {modality!r}{hint}", "a name with a known range",
                "It is used like MR, and its intensities are not checked.",
            )  # fmt: skip


def label_lack_findings(entries, labelled):
    """Findings on images without a label map: those to score or to choose by matter most.

    Args:
        entries: All cases.
        labelled: Whether any case of the study has a label map.
    """
    for entry in entries:
        if entry.case.label is None:
            scored = entry.case.split in ("val", "test") and labelled
            yield entry.finding(
                "KUG-D02", "warning" if scored else "info", "no label map",
                "one" if scored else "one, or a case that trains without",
                "It cannot be scored." if scored else "It teaches what the modality looks like.",
                "name its label map in study.json", "label",
            )  # fmt: skip


def class_findings(amounts, entries, names):
    """Findings on classes that some modality lacks.

    Args:
        amounts: Number of a case -> annotated name -> voxels, of the labelled cases.
        entries: All cases.
        names: Scored names of the study.

    Returns:
        List of findings, and the table of `Report.classes`.
    """
    labelled = [e for e in entries if e.number in amounts]
    classes: dict = {}
    for entry in labelled:
        row = classes.setdefault(entry.case.modality, {n: {"cases": 0, "voxels": 0} for n in names})
        for name, count in amounts[entry.number].items():
            row[name]["cases"] += count > 0
            row[name]["voxels"] += count
    training = [e for e in labelled if e.case.split == "train"] or labelled
    sought, held = collections.defaultdict(set), collections.defaultdict(set)
    for entry in training:
        sought[entry.case.modality] |= set(amounts[entry.number])
        held[entry.case.modality] |= {n for n, c in amounts[entry.number].items() if c}
    found = []
    for name in names:
        # Where nobody looked for it, it may well be there.
        asked = [m for m in held if name in sought[m]]
        lacking = [m for m in asked if name not in held[m]]
        if held and len(lacking) == len(asked):
            found.append(
                of_study("KUG-D23", "warning", f"no voxel of {name}", "some to learn from")
            )
        elif lacking:
            found.append(
                of_study(
                    "KUG-D15",
                    "warning",
                    f"no {name} in the training cases of {', '.join(lacking)}",
                    "every class in every modality",
                    "Systems that translate would learn to erase it, and refuse to start.",
                    "add cases that show it, or train with --set train.allow_missing_classes=true",
                )
            )
    return found, classes


def flat_findings(entries, shapes):
    """Findings on single slices among volumes, or the other way round.

    Args:
        entries: All cases.
        shapes: Number of a case -> RAS+ shape.
    """
    flat = [e for e in entries if e.number in shapes and shapes[e.number][2] == 1]
    deep = [e for e in entries if e.number in shapes and shapes[e.number][2] > 1]
    if flat and deep:
        fewer, kind, other = (
            (flat, "one slice", "volumes")
            if len(flat) <= len(deep)
            else (deep, "a volume", "slices")
        )
        for entry in fewer:
            yield entry.finding(
                "KUG-D18", "warning", kind, f"{other}, like most of the study",
                "One plan cannot suit both.", "make two studies", "image",
            )  # fmt: skip


def patch_findings(entries, shapes, spacings, plan):
    """Findings on volumes smaller than the plan's patch.

    Args:
        entries: All cases.
        shapes: Number of a case -> RAS+ shape without its background.
        spacings: Number of a case -> RAS+ spacing in mm.
        plan: `config.Plan`.
    """
    for entry in entries:
        if entry.number not in shapes:
            continue
        size = preprocessing.target_shape(
            shapes[entry.number], spacings[entry.number], plan.spacing
        )
        for name, configuration in plan.configurations.items():
            patch = configuration.patch_size
            if any(n < p for n, p in zip(size, patch, strict=False)):
                yield entry.finding(
                    "KUG-D17", "info", f"{size} voxels at the plan's spacing",
                    f"at least the {name} patch {tuple(patch)}",
                    "It is padded to the patch, here and in prediction.",
                    "for more of such cases: a plan with a smaller patch", "image",
                )  # fmt: skip


def copy_findings(entries, hashes, thumbnails, sketches):
    """Findings on one content under two names, and on near-duplicates across splits.

    Args:
        entries: All cases.
        hashes: Number of a case -> content hash.
        thumbnails: Number of a case -> thumbnail.
        sketches: Number of a case -> sketch.

    Returns:
        List of findings, and the pairs of case numbers that must share a split.
    """
    of = {e.number: e for e in entries}
    found, twins = [], []
    for a, b in duplicates.same_content(hashes):
        one, two = of[a].case, of[b].case
        apart = one.split != two.split
        twins.append((a, b))
        found.append(
            of[b].finding(
                "KUG-D27",
                "error" if apart else "warning",
                f"the content of {of[a].name} ({one.split or 'no split'}), "
                f"hash {hashes[a][:12]}, in {two.split or 'no split'}",
                "each image once",
                "The same image in training and test makes every score a lie."
                if apart
                else "It counts twice.",
                "unigan check STUDY --fix DIR writes a regrouped study; or remove one",
                "image",
            )
        )
    splits = {e.number: e.case.split for e in entries}
    kinds = {e.number: e.case.modality for e in entries}
    subjects = {e.number: e.case.subject for e in entries}
    limits = duplicates.limits(thumbnails, kinds, subjects)
    close = duplicates.near(thumbnails, splits, limits)
    near = [(a, b, f"correlation {n:.3f}") for a, b, n in close]
    near += [
        (a, b, f"{n:.0%} of its runs of voxels")
        for a, b, n in duplicates.same_runs(sketches, splits)
    ]
    seen = set()
    for a, b, how in near:
        if hashes.get(a) == hashes.get(b) or of[a].case.subject == of[b].case.subject:
            continue
        if (a, b) in seen:
            continue
        seen.add((a, b))
        twins.append((a, b))
        found.append(
            of[b].finding(
                "KUG-D28",
                "warning",
                f"an image much like {of[a].name} ({of[a].case.split}; {how}) "
                f"in {of[b].case.split}",
                f"below {max(limits.get(k, 0.0) for k in (a, b)) or duplicates.SIMILAR:.3f} and "
                f"{duplicates.SHARED:.0%} between splits",
                "Perhaps one scan under two names: then scores are too good.",
                "look at both; unigan check STUDY --fix DIR writes a regrouped study",
                "image",
            )
        )
    return found, twins
