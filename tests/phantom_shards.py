"""Shards of a phantom study, written without Beam, for tests of what comes after."""

import collections
import dataclasses
import functools

from keras_unigan import planning
from keras_unigan.data import phantoms, preprocessing, records
from keras_unigan.data import volumes as volumes_of


def write(folder, patch_size=None, batch_size=None, filters=None, unlabelled=(), **study_options):
    """Writes a study, its plan and its shards.

    Args:
        folder: Gets `study/` and `shards/`.
        patch_size: Of the plan's 2-D configuration; None leaves what is planned.
        batch_size: The same.
        filters: The same.
        unlabelled: Numbers of the cases that are written without their label map.
        **study_options: Arguments of `phantoms.write_study`.

    Returns:
        Folder of the shards.
    """
    study = phantoms.write_study(folder / "study", **study_options)
    facts, volumes = {}, {}
    for case in study.cases:
        image = volumes_of.read_image(study.path(case.image), study.channels)
        volumes[case.id] = [image, volumes_of.read(study.path(case.label))]
        if case.split == "train":
            measured = planning.measure(*volumes[case.id], study.labels, case.id)
            facts.setdefault(case.modality, []).append(measured)
    facts = {m: functools.reduce(planning.merge, found) for m, found in facts.items()}
    plan = planning.make_plan(study, planning.fingerprint(study, facts))
    changes = {"patch_size": patch_size, "batch_size": batch_size, "filters": filters}
    flat = dataclasses.replace(
        plan.configuration(2), **{k: v for k, v in changes.items() if v is not None}
    )
    plan = dataclasses.replace(plan, configurations={**plan.configurations, "2d": flat})
    shards, groups = folder / "shards", collections.defaultdict(list)
    for number, case in enumerate(study.cases):
        image, label = volumes[case.id]
        label = None if number in unlabelled else label
        prepared = preprocessing.prepare(image, plan, label, case.id)
        groups[case.split, case.modality].append((case.id, records.to_example(case, prepared)))
    found, splits = [], collections.defaultdict(dict)
    for (split, modality), cases in groups.items():
        file = f"{split}/{modality}-00000-of-00001.tfrecord.gz"
        (shards / split).mkdir(parents=True, exist_ok=True)
        records.write_shard(shards / file, [example for _, example in cases])
        size, digest = (shards / file).stat().st_size, records.sha256(shards / file)
        ids = tuple(name for name, _ in cases)
        found.append(records.Shard(file, split, modality, ids, digest, size))
        splits[split][modality] = len(cases)
    manifest = records.Manifest(
        *(plan.recipe, plan.to_dict(), records.schema(plan.channels)),
        *(dict(splits), tuple(found)),
    )
    manifest.save(shards)
    plan.save(shards / "plan.json")
    return shards
