"""Repaired copies of what a check found, and a study of them; the input stays as it is.

Only what has one right answer is repaired: a label map in another place is resampled, values are
mapped where the order decides, voxels that are not finite become background (image) or not labelled
(label map), endings follow the content, subjects and copies get one split. Cases that cannot be
used are left out of the new study and named.
"""

import collections
import dataclasses
import os
import re
from pathlib import Path

import numpy as np
from scipy import ndimage

from keras_unigan.config import ALL_CHANNELS, IGNORE, SPLITS
from keras_unigan.data import cases as case_files
from keras_unigan.data import nifti, preprocessing
from keras_unigan.data.checks import drafts, geometry, scans, voxels
from keras_unigan.errors import CodedError

_KEPT = 0.9
"""Share of the labelled volume that must arrive on the image's grid."""
_UNUSABLE = ("KUG-D01", "KUG-D07", "KUG-D10", "KUG-D11", "KUG-D12", "KUG-D36")
_REPAIRABLE = ("KUG-D03", "KUG-D04", "KUG-D05", "KUG-D06", "KUG-D07")


@dataclasses.dataclass(frozen=True)
class Repairs:
    """What was done.

    Attributes:
        study: Path of the new study file.
        done: List of (case, what was done).
        left: List of (case, why it is not in the new study).
    """

    study: str
    done: list
    left: list


def repair(path, report, twins, folder):
    """Writes repaired copies and a new `study.json`.

    Args:
        path: The study file that was checked.
        report: What `passes.check` found.
        twins: Pairs of case numbers that must share a split.
        folder: Where to; it must not hold any file of the input.

    Returns:
        `Repairs`.

    Raises:
        CodedError: KUG-D08 when labels or modalities of the study itself must be corrected first,
            KUG-D14 when no case can be kept, KUG-E02 for a folder that holds the input.
    """
    draft, folder = drafts.open_study(path), Path(folder)
    _refuse_input(path, draft, folder)
    wrong = next((f for f in report.findings if f.code == "KUG-D08" and f.number is None), None)
    if draft.labels is None or wrong is not None:
        raise CodedError(
            "KUG-D08", path, "labels or modalities that are not valid", "a study that can be read",
            fix="correct study.json as `unigan check` says, then repair",
        )  # fmt: skip
    codes = collections.defaultdict(set)
    for finding in report.findings:
        if finding.number is not None and finding.level != "info":
            codes[finding.number].add((finding.code, finding.part))
    shared = _of_shared_labels(draft, codes)
    done, left, kept, seen = [], [], [], set()
    for entry in draft.entries:
        found = codes[entry.number] | shared[entry.case.label]
        reason = _unusable(entry, found, report, draft, seen)
        if reason is None:
            try:
                case, actions = _repair_case(draft, entry, found, folder)
            except CodedError as error:
                reason = f"{error.code}: {error.found}"
        if reason is not None:
            left.append((entry.name, reason))
            continue
        seen.add(case.id)
        done += [(entry.name, action) for action in actions]
        kept.append((entry, case))
    splits = _one_split(kept, twins)
    cases = []
    for entry, case in kept:
        if splits[case.subject] != case.split:
            done.append((entry.name, f"split {case.split} -> {splits[case.subject]}"))
        cases.append(dataclasses.replace(case, split=splits[case.subject]))
    present = {c.modality for c in cases}
    modalities = tuple(m for m in draft.study.modalities if m in present)
    if not cases:
        raise CodedError("KUG-D14", path, "no case that could be kept", "one at least")
    head = draft.study
    schemes = {m: s for m, s in head.normalization.items() if m in present}
    study = dataclasses.replace(
        head, modalities=modalities, labels=draft.labels, cases=tuple(cases), normalization=schemes
    )
    output = folder / "study.json"
    case_files.relative_to(study, output).save(output)
    return Repairs(str(output), done, left)


def _refuse_input(path, draft, folder):
    names = [n for e in draft.entries for n in (e.case.image, e.case.label) if n is not None]
    files = [path, *(draft.path(n) for n in names if "://" not in draft.path(n))]
    if any(folder.resolve() in Path(f).resolve().parents for f in files):
        raise CodedError(
            "KUG-E02", folder, "a folder that holds files of the study", "another folder",
            "The input stays as it is.", "--fix OTHER_FOLDER",
        )  # fmt: skip


def _of_shared_labels(draft, codes):
    """Label name -> findings on that file, which stand with the first case that names it."""
    shared = collections.defaultdict(set)
    for entry in draft.entries:
        if entry.case.label is not None:
            shared[entry.case.label] |= {
                (code, part)
                for code, part in codes[entry.number]
                if part == "label" and code not in ("KUG-D03", "KUG-D04")
            }
    return shared


def _unusable(entry, found, report, draft, seen):
    """Why a case cannot be in the new study, or None."""
    if entry.case.modality not in draft.study.modalities:
        return "KUG-D08: modality not in the study"
    if set(entry.case.annotated or ()) - set(draft.labels.foreground):
        return "KUG-D08: annotated names not in the study"
    if entry.case.id in seen:
        return "KUG-D13: the case a second time"
    for finding in report.findings:
        mine = finding.number == entry.number
        if mine and finding.code == "KUG-D13" and finding.part == "image":
            return "KUG-D13: the image of another case"
        # An ending that misleads is a warning of the same code, and is repaired.
        if mine and finding.level == "error" and finding.code in _UNUSABLE:
            return f"{finding.code}: {finding.part} not usable"
    for name in (entry.case.image, entry.case.label):
        if name is not None and "://" not in name and not os.path.exists(draft.path(name)):
            return "KUG-D01: a file is missing"
    return None


def _repair_case(draft, entry, found, folder):
    """The case with its repaired copies, and what was done."""
    case, actions = entry.case, []
    if not any(code in _REPAIRABLE for code, _ in found):
        absolute = {n: draft.path(getattr(case, n)) for n in ("image", "label")}
        return dataclasses.replace(case, **absolute), actions
    paths = {"image": draft.path(case.image), "label": draft.path(case.label)}
    volumes, changed = {}, set()
    for part, path in paths.items():
        if path is not None:
            kept = ALL_CHANNELS if draft.study.channels > 1 else case.channel
            scan = scans.open_scan(path, kept if part == "image" else None)
            if scan.error is not None:
                raise scan.error
            volumes[part] = scan.volume
    for part in volumes:
        if ("KUG-D07", part) in found:
            actions.append(f"{part}: ending as its content")
            changed.add(part)
    image, count = _finite(volumes["image"], None)
    if count:
        actions.append(f"image: {count} voxels that were not finite are background")
        changed.add("image")
    label = volumes.get("label")
    if label is not None and any(code != "KUG-D07" for code, part in found if part == "label"):
        label, steps = _repair_label(label, image, draft.labels, entry.name)
        actions += steps
        changed |= {"label"} if steps else set()
    names = {"image": f"{_plain(case.id)}.nii.gz", "label": f"{_plain(case.id)}_seg.nii.gz"}
    for part, volume in (("image", image), ("label", label)):
        if part in changed:
            nifti.write(folder / names[part], volume.array, volume)
            paths[part] = os.path.abspath(folder / names[part])
    channel = None if "image" in changed else case.channel
    return dataclasses.replace(case, **paths, channel=channel), actions


def _plain(name):
    """A file name of a case id."""
    return re.sub(r"[^\w.-]", "-", name)


def _finite(volume, value):
    """The volume with `value` (None: background, else the lowest) where it is not finite."""
    array = volume.array
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return volume, 0
    bad = ~np.isfinite(array)
    if value is None:
        value = preprocessing.background_value(array)
        if value is None or not np.isfinite(value):
            value = array[~bad].min() if not bad.all() else 0
    fixed = np.where(bad, array.dtype.type(value), array)
    return dataclasses.replace(volume, array=fixed), int(bad.sum())


def _repair_label(label, image, labels, name):
    """The label map with values of the study on the image's grid, and what was done to it.

    Raises:
        CodedError: KUG-D05 for values that cannot be mapped, KUG-D03 or KUG-D04 when too little of
            the foreground lies inside the image.
    """
    steps = []
    label, count = _finite(label, IGNORE)
    if count:
        steps.append(f"label: {count} voxels that were not finite are not labelled (255)")
    remap = voxels.suggest_remap(label.array, labels)
    values = np.rint(label.array)
    whole = (np.abs(label.array - values) <= 1e-3).all()
    if not remap and not (whole and values.min() >= 0 and values.max() <= IGNORE):
        preprocessing.encode_labels(label.array, labels, name)
    values = values.astype(np.int64)
    if remap:
        table = np.arange(max(remap) + 1)
        table[list(remap)] = list(remap.values())
        values = table[values]
        steps.append("label: values " + ", ".join(f"{a} -> {b}" for a, b in remap.items()))
    preprocessing.encode_labels(values, labels, name)
    label = dataclasses.replace(label, array=values.astype(np.uint8))
    ras_image, ras_label = nifti.to_ras(image), nifti.to_ras(label)
    apart = ras_image.shape != ras_label.shape or (
        geometry.corner_offset(ras_image.shape, ras_image.affine, ras_label.affine)[1]
        > geometry.HALF_VOXEL
    )
    if apart:
        label, how = _on_grid(label, image, name)
        steps.append(how)
    return label, steps


def _on_grid(label, image, name):
    """The label map on the image's grid, nearest neighbour through world coordinates."""
    placed = label.header is None or any(
        int(label.header[code]) for code in ("qform_code", "sform_code")
    )
    if not placed and label.shape == image.shape:
        how = "label: has no place of its own and takes the image's"
        return nifti.Volume(label.array, image.affine, image.header), how
    step = np.linalg.solve(label.affine, image.affine)
    array = ndimage.affine_transform(
        label.array, step[:3, :3], step[:3, 3], image.shape, order=0, mode="grid-constant"
    )
    before = np.count_nonzero(label.array) * abs(np.linalg.det(label.affine[:3, :3]))
    after = np.count_nonzero(array) * abs(np.linalg.det(image.affine[:3, :3]))
    if after < _KEPT * before:
        code = "KUG-D04" if label.shape == image.shape else "KUG-D03"
        raise CodedError(
            code, name, f"only {after / before:.0%} of the labelled volume inside the image",
            f"{_KEPT:.0%}", "One of the two affines is wrong.",
        )  # fmt: skip
    return nifti.Volume(array, image.affine, image.header), "label: resampled to the image's grid"


def _one_split(kept, twins):
    """Subject -> split: one for subjects that are linked by a copy, training before the others."""
    of = {entry.number: case.subject for entry, case in kept}
    parent = {subject: subject for subject in of.values()}

    def root(subject):
        while parent[subject] != subject:
            parent[subject] = parent[parent[subject]]
            subject = parent[subject]
        return subject

    for a, b in twins:
        if a in of and b in of:
            parent[root(of[b])] = root(of[a])
    order = {split: i for i, split in enumerate((*SPLITS, None))}
    first: dict = {}
    for _, case in kept:
        group = root(case.subject)
        first[group] = (
            min(first.get(group), case.split, key=order.get) if group in first else case.split
        )
    return {subject: first[root(subject)] for subject in parent}
