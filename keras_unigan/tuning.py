"""What validation cases teach about a trained run: its post-processing, and when to raise an alarm.

Only cases that no asked network was trained on, and that are no test cases: of one run the labelled
validation cases of the study; of several runs also those training cases that at least one of them
never saw, each predicted by the runs that did not (out of fold). What a run saw is in its
`audit.csv`.
"""

import csv
from pathlib import Path

import numpy as np

from keras_unigan import alarm, prediction, step_selection
from keras_unigan.config import IGNORE, Plan, Study
from keras_unigan.data import preprocessing, volumes
from keras_unigan.errors import CodedError
from keras_unigan.postprocessing import Postprocessing
from keras_unigan.truth import check_labels, public_message, read_case, true_masks

MOST_VOLUMES = 32
"""Training volumes of a modality that the alarm is fitted to."""


def seen_subjects(run):
    """Subjects that a run was trained on, from its `audit.csv`; None where it has none."""
    path = Path(run) / "audit.csv"
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        return {row["subject"] for row in csv.DictReader(file)}


def validation_cases(study, seen, need_labels=True):
    """Cases to learn from, each with the numbers of the runs that may predict it.

    Args:
        study: `config.Study`.
        seen: Of each run the subjects that it was trained on, or None where it does not say.
        need_labels: Whether only labelled cases count.

    Returns:
        List of `(case, numbers)`.

    Raises:
        CodedError: KUG-D13 where the one run was trained on a validation case, KUG-D14 where there
            is no case.
    """

    def of_split(split):
        return [c for c in study.cases if c.split == split and (c.label or not need_labels)]

    found = [(case, _strangers(case, seen)) for case in of_split("val")]
    known = [case for case, numbers in found if not numbers]
    if len(seen) == 1 and known:
        raise CodedError(
            "KUG-D13",
            "split val",
            f"{len(known)} cases that the run was trained on, e.g. {known[0].id}",
            "cases that it never saw",
            "What is learnt from them would fit training, and promise too much.",
            "give the study.json that the run's shards were made of",
        )
    if len(seen) > 1:
        # Without an audit a training case has to be taken for seen.
        seen = [everyone(study) if subjects is None else subjects for subjects in seen]
        found += [(case, _strangers(case, seen)) for case in of_split("train")]
    found = [(case, numbers) for case, numbers in found if numbers]
    if not found:
        raise CodedError(
            "KUG-D14",
            study.name,
            f"no {'labelled ' * need_labels}validation case that a run did not train on",
            "at least one",
            fix="unigan split study.json, and prepare and train again",
        )
    return found


def everyone(study):
    """Subjects of a study."""
    return {case.subject for case in study.cases}


def _strangers(case, seen):
    """Numbers of the runs that did not see the subject of a case."""
    return [
        n for n, subjects in enumerate(seen) if subjects is None or case.subject not in subjects
    ]


def learn_postprocessing(run, study, tta="none", known_modality=True, say=None):
    """Learns post-processing and writes it into the folder.

    Args:
        run: Run folder, or one with `ensemble.json`.
        study: `config.Study`, or path of its file.
        tta: See `prediction.load`.
        known_modality: Whether networks are told the modality.
        say: Called with one sentence per case.

    Returns:
        `postprocessing.Postprocessing`, as in `postprocessing.json`: beside what
        `step_selection.learn` says `method`, `known_modality`, `cases` (their names), `subjects`
        and `failed` (name -> why it could not be used).

    Raises:
        CodedError: See `validation_cases` and `prediction.load`.
    """
    study = study if isinstance(study, Study) else Study.load(study)
    runs = prediction.members(run)
    ensemble = prediction.load(run, tta, postprocessing=False, alarm=False)
    check_labels(ensemble.plan, study)
    names, labels = ensemble.plan.labels.foreground, ensemble.plan.labels
    cases, found, failed = validation_cases(study, [seen_subjects(r) for r in runs]), [], {}
    for case, numbers in cases:
        try:
            volume, image, index_map = read_case(study, case, ensemble.plan)
            told = case.modality if known_modality else None
            masks = ensemble.of(numbers).segment_volume(volume, told, where=case.id).masks
        except CodedError as error:
            failed[case.id] = public_message(error, study)
        else:
            voxel = float(image.spacing[0] * image.spacing[1] * image.spacing[2])
            judged = tuple(names if case.annotated is None else case.annotated)
            truth, known = true_masks(index_map, labels), index_map != IGNORE
            one = step_selection.Case(case.modality, truth, masks, known, judged, voxel)
            found.append(one.cropped())
        if say:
            say(f"{case.id}: {failed.get(case.id, 'predicted')}")
    if not found:
        raise CodedError(
            "KUG-D14",
            study.name,
            "no validation case that can be used",
            "one",
            failed[cases[0][0].id],
        )
    result = step_selection.learn(found, names)
    used = [case for case, _ in cases if case.id not in failed]
    facts = {"method": {**ensemble.method, "known_modality": known_modality}}
    facts |= {"cases": [case.id for case in used], "failed": failed}
    facts |= {"subjects": len({case.subject for case in used})}
    result = Postprocessing(result.steps, {**facts, **result.learned})
    result.save(run)
    return result


def learn_alarm(run, study, known_modality=True, say=None):
    """Learns when a scan is unlike those of training, and writes it into the run folder.

    Distances are fitted to training volumes of the study that the run was trained on, and the
    threshold is that of its validation volumes; test cases are left alone.

    Args:
        run: Run folder.
        study: `config.Study`, or path of its file.
        known_modality: Whether the modality of validation volumes is told.
        say: Called with one sentence per case.

    Returns:
        What `alarm.json` says: `threshold`, `false_alarms` (probability at most, of a scan like
        those of validation), `known_modality`, `levels`, `training` (modality -> volumes),
        `validation` (case, modality, score, nearest, level), `failed`; or `{"reason": ...}` where
        the run can have no alarm, and nothing is written.

    Raises:
        CodedError: See `validation_cases` and `classification.load`.
    """
    from keras_unigan import classification

    study = study if isinstance(study, Study) else Study.load(study)
    discriminator, seen = classification.load(run), seen_subjects(run)
    if discriminator is None:
        return {"reason": "no discriminator with a domain head: it needs a system that has one"}
    plan = Plan.load(Path(run) / "plan.json")
    validation = [case for case, _ in validation_cases(study, [seen], need_labels=False)]
    training = _training_cases(study, plan, seen)
    few = [m for m in plan.modalities if len(training[m]) < 2]
    if few:
        return {"reason": f"fewer than two training volumes of {', '.join(few)} in the study"}
    descriptor, failed = alarm.Descriptor(discriminator, plan), {}

    def read(case):
        try:
            volume = volumes.read_image(study.path(case.image), plan.channels, case.channel)
            return preprocessing.prepare(volume, plan, None, case.id)
        except CodedError as error:
            failed[case.id] = public_message(error, study)
            return None
        finally:
            if say:
                say(f"{case.id}: {failed.get(case.id, 'looked at')}")

    vectors, domains = [], []
    for domain, modality in enumerate(plan.modalities):
        for prepared in filter(None, map(read, training[modality])):
            vectors.append(descriptor(prepared, modality))
            domains.append(domain)
    count = len(plan.modalities)
    if min(np.bincount(domains, minlength=count)) < 2:
        return {"reason": "fewer than two training volumes of a modality that can be read"}
    levels = [alarm.Level.fit(level, domains, count) for level in zip(*vectors, strict=True)]
    learnt, rows = alarm.Alarm(descriptor, levels), []
    for case in validation:
        prepared = read(case)
        if prepared is not None:
            told = case.modality if known_modality else None
            found = learnt.read(prepared, told)
            row = {"case": case.id, "modality": case.modality, "score": found.score}
            rows.append({**row, "nearest": found.nearest, "level": found.level})
    if not rows:
        return {"reason": "no validation volume that can be read"}
    learnt.threshold, share = alarm.conformal_threshold([row["score"] for row in rows])
    facts = {"false_alarms": share, "known_modality": known_modality}
    facts |= {"levels": list(descriptor.levels), "validation": rows, "failed": failed}
    facts |= {"training": {m: domains.count(d) for d, m in enumerate(plan.modalities)}}
    learnt.save(run, facts)
    return {"threshold": learnt.threshold, **facts}


def _training_cases(study, plan, seen):
    """Modality -> training cases of the study that the run was trained on, not too many."""
    found = {modality: [] for modality in plan.modalities}
    for case in study.cases:
        mine = case.split == "train" and (seen is None or case.subject in seen)
        if mine and case.modality in found and len(found[case.modality]) < MOST_VOLUMES:
            found[case.modality].append(case)
    return found
