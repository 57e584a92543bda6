"""Medical Segmentation Decathlon: `dataset.json` names modalities, labels and files."""

from pathlib import Path

from keras_unigan.config import Case, read_json
from keras_unigan.data.readers import common, sidecar
from keras_unigan.data.readers.common import Found
from keras_unigan.errors import CodedError


def read(folder):
    """Reads a task folder with its `dataset.json`.

    A file with several channels gives one case a channel, named by `modality` in their order. Files
    under `test` are of split "test"; those with a namesake in `labelsTs` are labelled.

    Args:
        folder: Local folder.

    Returns:
        `Found`, in the order of `dataset.json`; a subject is a file name.

    Raises:
        CodedError: KUG-D01 without a description or images, KUG-D02 where no image has a label map,
            KUG-D08 for a description that is not valid, KUG-D10 for a file whose channels are not
            those named.
    """
    folder = Path(folder).resolve()
    file = folder / "dataset.json"
    data = description(file)
    modalities = numbered(data, "modality", file)
    named = sidecar.load(folder).get("files", {})
    cases = []
    for part, split in (("training", None), ("test", "test")):
        for image, label in _entries(data, part, folder, file):
            key = image.relative_to(folder).as_posix() if image.is_relative_to(folder) else ""
            own = tuple(named.get(key, modalities))
            count = common.channels(image)
            if count != len(own):
                raise CodedError(
                    "KUG-D10",
                    image,
                    f"{count} channels",
                    f"{len(own)}: {', '.join(own)}, as {file.name} says",
                    "A channel without a name could be any modality.",
                    f"correct `modality` in {file.name}",
                )
            for channel, modality in enumerate(own):
                place = {"image": str(image), "label": None if label is None else str(label)}
                place |= {"split": split, "channel": channel if count > 1 else None}
                cases.append(Case(common.stem(image) or image.name, modality, **place))
    if not cases:
        raise CodedError("KUG-D01", file, "no image under training or test", "at least one")
    common.check_labelled(cases, [], folder)
    labels = common.labels_of(by_name(data["labels"], file), file) if "labels" in data else None
    return Found(tuple(cases), labels, modalities, data.get("name") or None)


def description(file):
    """Reads `dataset.json`.

    Raises:
        CodedError: KUG-D01 when it is missing, KUG-D08 when it is no object.
    """
    data = read_json(file)
    if not isinstance(data, dict):
        raise CodedError("KUG-D08", file, type(data).__name__, "an object")
    return data


def numbered(data, key, file):
    """Names of channels in lower case, as `{"0": "FLAIR", "1": "T1w"}` gives them.

    Raises:
        CodedError: KUG-D08 unless they are distinct names numbered from 0.
    """
    names = data.get(key)
    if (
        not isinstance(names, dict)
        or set(names) != {str(i) for i in range(len(names))}
        or not names
    ):
        raise CodedError("KUG-D08", f"{file} {key}", f"{names!r}", '{"0": name, "1": name, …}')
    result = tuple(str(names[str(i)]).lower() for i in range(len(names)))
    if len(set(result)) != len(result) or not all(result):
        raise CodedError(
            "KUG-D08",
            f"{file} {key}",
            f"{list(result)}",
            "a name of its own for each channel",
            fix="name the channels apart",
        )
    return result


def by_name(labels, file):
    """`name -> values` from either direction: `{"1": "liver"}` or `{"liver": 1}`.

    Raises:
        CodedError: KUG-D08 when it is no object.
    """
    if not isinstance(labels, dict):
        raise CodedError("KUG-D08", f"{file} labels", type(labels).__name__, "an object")
    if not all(str(key).isdigit() for key in labels):
        return labels
    result = {}
    for value, name in labels.items():
        result.setdefault(str(name), []).append(int(value))
    return result


def _entries(data, part, folder, file):
    """Pairs of absolute paths (image, label or None) of one part."""
    entries = data.get(part) or []
    if not isinstance(entries, list):
        raise CodedError("KUG-D08", f"{file} {part}", type(entries).__name__, "a list")
    for number, entry in enumerate(entries):
        entry = {"image": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
            where = f"{file} {part}[{number}]"
            raise CodedError("KUG-D08", where, f"{entry!r}", "an image, or an image and its label")
        image = Path(common.absolute(folder, entry["image"]))
        label = common.absolute(folder, entry.get("label"))
        if label is None and part == "test":
            beside = folder / "labelsTs" / image.name
            label = beside if beside.is_file() else None
        yield image, label and Path(label)
