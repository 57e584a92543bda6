"""Writes the Medical Segmentation Decathlon's layout."""

from keras_unigan.config import write_json
from keras_unigan.data.writers import common
from keras_unigan.data.writers.common import Written


def write(study, folder):
    """Writes `imagesTr`, `labelsTr`, `imagesTs`, `labelsTs` and `dataset.json`.

    Modalities of one subject, visit, label map and grid become channels of one file. What has only
    some of the modalities keeps those; the sidecar names them.

    Args:
        study: `config.Study` with absolute paths.
        folder: Empty folder.

    Returns:
        `Written`.
    """
    places, files = {}, {}
    entries = {"training": [], "test": []}
    for group in common.groups(study, common.stackable):
        part = "Ts" if group.held_out else "Tr"
        name = f"{group.name}.nii.gz"
        image = folder / f"images{part}" / name
        many = len(group.cases) > 1
        if many:
            common.put_stack(group.cases, image)
        else:
            common.put(group.cases[0].image, image, group.cases[0].channel)
        label = None
        if group.label is not None:
            label = folder / f"labels{part}" / name
            common.put(group.label, label)
        for channel, case in enumerate(group.cases):
            places[case.id] = (image, channel if many else None, label)
        found = [case.modality for case in group.cases]
        if found != list(study.modalities):
            files[f"images{part}/{name}"] = found
        if group.held_out:
            entries["test"].append(f"./imagesTs/{name}")
        else:
            pair = {"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"}
            entries["training"].append(pair)
    labels = {"0": "background", **{str(v): n for v, n in common.class_names(study).items()}}
    data = {
        **common.titled(study),
        "tensorImageSize": "4D" if len(study.modalities) > 1 else "3D",
        "modality": {str(i): m for i, m in enumerate(study.modalities)},
        "labels": labels,
        "numTraining": len(entries["training"]),
        "numTest": len(entries["test"]),
        **entries,
    }
    write_json(folder / "dataset.json", data)
    note = f"{len(files)} files lack some of the modalities: unigan.json says which they have"
    return Written(common.with_files(study, places), files, [note] if files else [])
