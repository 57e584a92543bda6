"""How well a run's alarm tells strange scans from ordinary ones; one JSON line.

Ordinary are the test scans of a study. Strange are the same scans with their contrast turned over,
and with as much noise as there is contrast; and any files, e.g. of another organ. The AUROC of the
domain head alone (its highest softmax, as `classify_modality` has it) stands beside that of the
alarm. `unigan tune RUN study.json` has to be run first.

    python benchmarks/alarm.py RUN study.json --others "$UNIGAN_DATA/hippocampus_t1_msd/*/*.nii.gz"
"""

import argparse
import json

import numpy as np

from keras_unigan import alarm, classification, inference
from keras_unigan.config import Study
from keras_unigan.data import nifti, preprocessing, volumes


def inverted(array, inside, rng):
    low, high = np.percentile(array[inside], (0.5, 99.5))
    return low + high - array


def noisy(array, inside, rng):
    return array + rng.normal(0, array[inside].std(), array.shape)


CHANGES = {"inverted": inverted, "noisy": noisy}


def changed(volume, change, rng):
    """The scan with its body changed; the background stays."""
    array = volume.array.astype(np.float32)
    inside = preprocessing.nonbackground(array)
    made = np.where(inside, CHANGES[change](array, inside, rng), array)
    return nifti.Volume(made.astype(np.float32), volume.affine)


def readings(learnt, classify, volume, modality):
    """Scores of the alarm, told and not told the modality, and of the domain head alone."""
    prepared = preprocessing.prepare(volume, learnt.plan)
    middle = np.moveaxis(prepared.image, 2, 0)[:, ..., None]
    middle = middle[len(middle) // 4 : -(len(middle) // 4) or None].astype(np.float32)
    head = -float(np.max(np.asarray(classify(middle)).mean(axis=0)))
    told = None if modality is None else learnt.read(prepared, modality).score
    return told, learnt.read(prepared, None).score, head


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("study")
    parser.add_argument("--others", nargs="*", default=[], help="Files, folders or globs.")
    parser.add_argument("--limit", type=int, default=12, help="Scans of each kind.")
    options = parser.parse_args()
    learnt, study = alarm.Alarm.load(options.run), Study.load(options.study)
    if learnt is None:
        parser.error(f"{options.run} has no alarm: unigan tune RUN study.json")
    classify = classification.classifying_function(learnt.descriptor.discriminator, learnt.plan)
    cases = [c for c in study.cases if c.split == "test" and c.modality in learnt.plan.modalities]
    rng, found = np.random.default_rng(0), {"ordinary": []}
    for case in cases[:: max(1, len(cases) // options.limit)][: options.limit]:
        volume = volumes.read_image(study.path(case.image), learnt.plan.channels, case.channel)
        found["ordinary"].append(readings(learnt, classify, volume, case.modality))
        for change in CHANGES:
            strange = changed(volume, change, rng)
            found.setdefault(change, []).append(readings(learnt, classify, strange, case.modality))
    if options.others:
        pairs = inference.outputs_for(options.others, "others")[: options.limit]
        scans = [volumes.read_image(source, learnt.plan.channels, None) for source, _ in pairs]
        found["others"] = [readings(learnt, classify, volume, None) for volume in scans]
    row = {"run": options.run, "threshold": learnt.threshold}
    row["scans"] = {kind: len(scores) for kind, scores in found.items()}
    for place, name in enumerate(("told", "not told", "domain head alone, not told")):
        row[name] = {}
        for kind, scores in found.items():
            values = [score[place] for score in scores if score[place] is not None]
            if kind != "ordinary" and values:
                normal = [score[place] for score in found["ordinary"]]
                row[name][kind] = round(alarm.auroc(normal, values), 3)
    ordinary = [score[0] > learnt.threshold for score in found["ordinary"]]
    row["false alarms"] = round(float(np.mean(ordinary)), 3)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
