"""nnU-Net raw data: `imagesTr/<case>_0000.nii.gz`, one file a channel, beside `labelsTr`."""

import re
from pathlib import Path

from keras_unigan.config import IGNORE, Case, Labels
from keras_unigan.data.readers import common
from keras_unigan.data.readers.common import Found
from keras_unigan.data.readers.msd import by_name, description, numbered
from keras_unigan.errors import CodedError


def read(folder):
    """Reads a `DatasetXXX_Name` folder (version 2, and version 1 where it differs).

    `channel_names` gives the modalities. Images in `imagesTs` are of split "test"; those with a
    namesake in `labelsTs` are labelled. Labels with `regions_class_order` are regions.

    Args:
        folder: Local folder.

    Returns:
        `Found`, sorted by case and channel; a subject is a case identifier.

    Raises:
        CodedError: KUG-D01 without a description or images, KUG-D02 for label maps without an image
            or where no image has one, KUG-D08 for a description that is not valid, a channel number
            that it does not name, or an ignore label of another value than 255.
    """
    folder = Path(folder).resolve()
    file = folder / "dataset.json"
    data = description(file)
    modalities = numbered(data, "channel_names" if "channel_names" in data else "modality", file)
    ending = data.get("file_ending", ".nii.gz")
    cases, orphans = [], []
    for part, split in (("Tr", None), ("Ts", "test")):
        images = _images(folder / f"images{part}", ending)
        labels = {p.name[: -len(ending)]: p for p in (folder / f"labels{part}").glob(f"*{ending}")}
        for (name, channel), path in sorted(images.items()):
            if channel >= len(modalities):
                raise CodedError(
                    "KUG-D08",
                    path,
                    f"channel {channel}",
                    f"one of {len(modalities)} channels that {file.name} names",
                    fix=f"name it in {file.name}",
                )
            label = labels.get(name)
            place = {"label": None if label is None else str(label), "split": split}
            cases.append(Case(name, modalities[channel], str(path), **place))
        names = {name for name, _ in images}
        orphans += [path for name, path in sorted(labels.items()) if name not in names]
    if not cases:
        expected = f"imagesTr/<case>_0000{ending}"
        raise common.no_images(folder, len(list(folder.glob("*/*"))), len(orphans), expected)
    common.check_labelled(cases, orphans, folder)
    labels = _labels(data, file) if "labels" in data else None
    return Found(tuple(cases), labels, modalities, data.get("name") or None)


def _images(folder, ending):
    """(case, channel number) -> path."""
    pattern = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}")
    found = ((pattern.fullmatch(p.name), p) for p in folder.glob(f"*{ending}"))
    return {(m[1], int(m[2])): p for m, p in found if m and not p.name.startswith(".")}


def _labels(data, file):
    values = dict(by_name(data["labels"], file))
    ignore = values.pop("ignore", IGNORE)
    if ignore not in (IGNORE, [IGNORE]):
        raise CodedError(
            "KUG-D08",
            f"{file} labels",
            f"an ignore label of value {ignore}",
            f"{IGNORE}",
            "Other values would be taught as a class.",
            f"write {IGNORE} in place of {ignore} in copies of the label maps and in {file.name}",
        )
    labels = common.labels_of(values, file)
    if data.get("regions_class_order") and labels.classes:
        return Labels(regions=labels.classes)
    return labels
