"""Writes BIDS, with label maps as a derivative."""

import collections
import csv
from pathlib import Path

from keras_unigan.config import write_json
from keras_unigan.data.writers import common
from keras_unigan.data.writers.common import Written

_VERSION = "1.10.0"
_STANDARD = {
    **{"t1": ("anat", "", "T1w"), "t2": ("anat", "", "T2w"), "pd": ("anat", "", "PDw")},
    **{"t1c": ("anat", "ce-contrast_", "T1w"), "flair": ("anat", "", "FLAIR")},
    **{"pet": ("pet", "", "pet"), "ct": ("ct", "", "ct")},
}
_OWN = ("dseg", "probseg", "mask", "defacemask", "t1w", "t2w", "pdw", *_STANDARD)


def write(study, folder):
    """Writes `sub-…/[ses-…/]anat`, label maps under `derivatives/labels`, tables and descriptions.

    Modalities that BIDS does not know become a suffix of `anat`, which `.bidsignore` names.

    Args:
        study: `config.Study` with absolute paths.
        folder: Empty folder.

    Returns:
        `Written`.
    """
    subjects = common.unique([c.subject for c in study.cases], "[^A-Za-z0-9]")
    visits = common.unique([c.visit for c in study.cases if c.visit], "[^A-Za-z0-9]")
    kinds = _kinds(study.modalities)
    labels = folder / "derivatives" / "labels"
    shared = collections.defaultdict(list)
    places = {}
    for case in study.cases:
        base = f"sub-{subjects[case.subject]}"
        parent = Path(base)
        if case.visit:
            base, parent = f"{base}_ses-{visits[case.visit]}", parent / f"ses-{visits[case.visit]}"
        datatype, entity, suffix = kinds[case.modality]
        end = ".nii.gz" if case.channel is not None else common.ending(case.image)
        image = parent / datatype / f"{base}_{entity}{suffix}{end}"
        common.put(case.image, folder / image, case.channel)
        places[case.id] = [folder / image, None, None]
        if case.label is not None:
            shared[case.label, base, parent].append((case, image))
    counts = collections.Counter(base for _, base, _ in shared)
    for (source, base, parent), members in shared.items():
        # A description of its own only where a subject has several label maps.
        own = "".join(filter(str.isalnum, "".join(kinds[members[0][0].modality][1:])))
        name = f"{base}_desc-{own}_dseg" if counts[base] > 1 else f"{base}_dseg"
        label = labels / parent / "anat" / f"{name}{common.ending(source)}"
        common.put(source, label)
        sources = {"Sources": [f"bids::{image.as_posix()}" for _, image in members]}
        write_json(label.with_name(f"{name}.json"), sources)
        for case, _ in members:
            places[case.id][2] = label
    _descriptions(study, folder, labels, subjects)
    strange = sorted({v[2] for m, v in kinds.items() if m not in _STANDARD or m == "ct"})
    lines = ["unigan.json", *(f"**/*_{suffix}.*" for suffix in strange)]
    (folder / ".bidsignore").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Written(common.with_files(study, places))


def _kinds(modalities):
    """Modality -> datatype, entity and suffix of its files."""
    others = [m for m in modalities if m not in _STANDARD]
    # The space makes them other texts than a modality of that name, and does not stay.
    safe = common.unique([*(f"{name} " for name in _OWN), *others], "[^A-Za-z0-9]")
    return {m: _STANDARD.get(m) or ("anat", "", safe[m]) for m in modalities}


def _descriptions(study, folder, labels, subjects):
    made = [{"Name": "keras_unigan"}]
    raw = {"Name": study.name, "BIDSVersion": _VERSION, "DatasetType": "raw", "GeneratedBy": made}
    write_json(folder / "dataset_description.json", raw)
    derived = {"Name": f"{study.name}: label maps", "DatasetType": "derivative"}
    write_json(labels / "dataset_description.json", raw | derived)
    values = [(0, "background"), *common.class_names(study).items()]
    _table(labels / "dseg.tsv", ("index", "name"), values)
    rows = {}
    for case in study.cases:
        rows.setdefault(case.subject, (case.site or "n/a", case.split or "n/a"))
    rows = [(f"sub-{subjects[subject]}", *row) for subject, row in rows.items()]
    _table(folder / "participants.tsv", ("participant_id", "site", "split"), rows)


def _table(path, columns, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
