"""Writes nnU-Net's raw layout, version 2."""

from keras_unigan.config import write_json
from keras_unigan.data.writers import common
from keras_unigan.data.writers.common import Written

_TAKEN = ("background", "ignore")


def write(study, folder):
    """Writes `imagesTr/<case>_0000`, `labelsTr`, `imagesTs`, `labelsTs` and `dataset.json`.

    Args:
        study: `config.Study` with absolute paths.
        folder: Empty folder.

    Returns:
        `Written`.
    """
    paths = [path for c in study.cases for path in (c.image, c.label) if path]
    plain = all(common.ending(path) == ".nii" for path in paths)
    ending = ".nii" if plain else ".nii.gz"
    rank = {m: i for i, m in enumerate(study.modalities)}
    places, training, partial = {}, 0, 0
    for group in common.groups(study, common.grid):
        part = "Ts" if group.held_out else "Tr"
        label = None
        if group.label is not None:
            label = folder / f"labels{part}" / f"{group.name}{ending}"
            common.put(group.label, label)
        for case in group.cases:
            name = f"{group.name}_{rank[case.modality]:04d}{ending}"
            image = folder / f"images{part}" / name
            common.put(case.image, image, case.channel)
            places[case.id] = (image, None, label)
        training += not group.held_out
        partial += len(group.cases) < len(study.modalities)
    data = {
        **common.titled(study),
        "channel_names": {str(i): m for i, m in enumerate(study.modalities)},
        **_labels(study.labels),
        "numTraining": training,
        "file_ending": ending,
    }
    write_json(folder / "dataset.json", data)
    values = [v for (v, *_) in study.labels.values]
    flat = sorted(v for group in study.labels.values for v in group)
    notes = []
    if partial:
        notes.append(f"{partial} cases lack some of the modalities: nnU-Net wants all in each")
    if flat != list(range(len(flat))):
        notes.append(f"label values {values}: nnU-Net wants them without gaps")
    return Written(common.with_files(study, places), {}, notes)


def _labels(labels):
    """`labels` of the description, and `regions_class_order` where names share values."""
    result = {"background": 0}
    for name in labels.foreground:
        values = list(labels.file_values(name))
        key = f"{name}_class" if name.lower() in _TAKEN else name
        result[key] = values[0] if len(values) == 1 else values
    if labels.overlapping or any(isinstance(v, list) for v in result.values()):
        offset = len(labels.names) - len(labels.foreground)
        order = list(labels.output_values[offset:])
        return {"labels": result, "regions_class_order": order}
    return {"labels": result}
