"""Which cases lie where in a folder of shards, and their arrays where memory holds them."""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from keras_unigan.config import prelabelled_error
from keras_unigan.data import records, sampling, splits
from keras_unigan.errors import CodedError


@dataclasses.dataclass
class Cases:
    """Cases of one split in the order of their numbers; arrays as tensors where they are cached."""

    names: list = dataclasses.field(default_factory=list)
    files: list = dataclasses.field(default_factory=list)
    positions: list = dataclasses.field(default_factory=list)
    subjects: list = dataclasses.field(default_factory=list)
    domains: list = dataclasses.field(default_factory=list)
    shapes: list = dataclasses.field(default_factory=list)
    # Label indices of the foreground of each case, or None where nobody labelled it.
    indices: list = dataclasses.field(default_factory=list)
    # Names that the label map of each case shows; empty where it shows all, or where there is none.
    annotated: list = dataclasses.field(default_factory=list)
    channels: int = 1
    volumes: dict | None = None

    def add(self, file, position, domain, record):
        """Adds one case by its arranged record."""
        self.names.append(record["case"].numpy().decode())
        self.files.append(file)
        self.positions.append(int(position))
        self.subjects.append(record["subject"].numpy().decode())
        self.domains.append(domain)
        self.shapes.append(tuple(record["shape"].numpy().tolist()))
        found = set(record["foreground"][:, 3].numpy().tolist())
        self.indices.append(found if record["labelled"] else None)
        self.annotated.append(tuple(name.decode() for name in record["annotated"].numpy()))

    def annotations(self, labels):
        """For each case and scored name 1 where the label map shows it, else 0."""
        return [labels.annotated(names or None) for names in self.annotated]

    def only(self, numbers):
        """These cases alone; not for cases with arrays."""
        lists = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)[:-2]}
        kept = {name: [values[n] for n in numbers] for name, values in lists.items()}
        return Cases(**kept, channels=self.channels)

    def fetch(self, case):
        """One volume read from its shard."""
        file = tf.constant(self.files)[case]
        position = tf.constant(self.positions, tf.int64)[case]
        dataset = tf.data.TFRecordDataset(file, "GZIP").skip(position).take(1)
        return arrange(dataset.get_single_element(), self.channels)


def arrange(serialized, channels=1):
    """One record as what patches are cut from; see `sampling` for the order of axes."""
    record = records.parse(serialized, channels)
    image, label_map = record["image"], record["label_map"]
    foreground = record["foreground"]
    classes = tf.cast(tf.gather_nd(label_map, foreground), tf.int32)
    return {
        "image": tf.transpose(image, [2, 0, 1, 3][: image.shape.rank]),
        "label_map": tf.transpose(label_map, [2, 0, 1]),
        "shape": tf.shape(label_map),
        "minimum": tf.reduce_min(image),
        "foreground": tf.concat([foreground, classes[:, None]], axis=1),
        "statistics": record["statistics"],
        **{key: record[key] for key in ("labelled", "annotated", "subject", "case")},
    }


def streams(cases, numbers):
    """Modality -> its subjects, each a list of case numbers, of some case numbers."""
    result = {}
    for number in sorted(numbers, key=lambda n: cases.domains[n]):
        subjects = result.setdefault(cases.domains[number], {})
        subjects.setdefault(cases.subjects[number], []).append(number)
    return {domain: list(subjects.values()) for domain, subjects in result.items()}


def options():
    """Fixed threads: the autotuner's own thread can hold up an epoch's end as long as it took."""
    result = tf.data.Options()
    result.autotune.enabled = False
    result.deterministic = True
    # Of several workers each takes its own batches; files have nothing to do with it.
    policy = tf.data.experimental.AutoShardPolicy.DATA
    result.experimental_distribute.auto_shard_policy = policy
    return result


def unpaired(cases, plan, seed):
    """Numbers of the cases to train with when each subject gives one modality only.

    Subjects are shuffled by the seed; those with fewer modalities choose first, and each takes the
    one of its own that the fewest subjects have taken so far (`splits.one_modality`).

    Raises:
        CodedError: KUG-D14 when a modality is left without a subject.
    """
    choices: dict[str, set] = {}
    for subject, domain in zip(cases.subjects, cases.domains, strict=True):
        choices.setdefault(subject, set()).add(domain)
    kept = splits.one_modality(choices, range(len(plan.modalities)), f"{seed} unpaired")
    lost = sorted(set(cases.domains) - set(kept.values()))
    if lost:
        raise CodedError(
            "KUG-D14",
            plan.modalities[lost[0]],
            f"{len(choices)} training subjects, all needed for other modalities",
            "at least one subject a modality",
            "Unpaired training uses one modality of each subject.",
            "add subjects, or use all their modalities: --set train.pair_subjects=true",
        )
    pairs = zip(cases.subjects, cases.domains, strict=True)
    return [n for n, (subject, domain) in enumerate(pairs) if kept[subject] == domain]


HEAD = ("case", "subject", "shape", "foreground", "labelled", "annotated")
"""What `Cases.add` takes of an arranged record."""


def _read(manifest, plan, keys=None):
    """Split, file, domain, position and arranged record of each case to train or validate with.

    Of the record only the `keys`, where there are some: what nobody asks for is not decoded.
    """

    def looked(number, place, serialized):
        record = arrange(serialized, plan.channels)
        return number, place, {key: record[key] for key in keys or record}

    shards = [
        (split, file, domain)
        for split in ("train", "val")
        for domain, modality in enumerate(plan.modalities)
        for file in manifest.files(split, modality)
    ]
    if not shards:
        return
    files = tf.constant([file for _, file, _ in shards])
    dataset = tf.data.Dataset.range(len(shards)).flat_map(
        lambda number: (
            tf.data.TFRecordDataset(files[number], "GZIP")
            .enumerate()
            .map(lambda place, serialized: looked(number, place, serialized))
        )
    )
    for number, position, record in dataset.with_options(options()):
        yield *shards[number], position, record


def _folds(manifest, plan, count, seed):
    """Subject of train and val -> its fold, 0 to `count` - 1; {} for one.

    Subjects are shuffled by the seed and dealt out in turn, one set of modalities after the other.

    Raises:
        CodedError: KUG-T02 for more folds than subjects; KUG-D37 for shards with synthetic images.
    """
    if count == 1:
        return {}
    files = [f for s in ("train", "val") for m in plan.modalities for f in manifest.files(s, m)]
    names = ("case", "subject", "modality")
    keys = {key: tf.io.FixedLenFeature([], tf.string) for key in names}
    keys |= records.SYNTHETIC | records.PRELABELLED
    found: dict[bytes, set] = {}
    for serialized in tf.data.TFRecordDataset(files, "GZIP").with_options(options()):
        record = tf.io.parse_single_example(serialized, keys)
        if record["synthetic"]:
            raise CodedError(
                "KUG-D37",
                record["case"].numpy().decode(),
                "a synthetic image among subjects that are to be dealt into folds",
                "scans alone",
                "It was made of training subjects, and would leak them into the validation of "
                "another fold.",
                "train without --folds, on the split that its maker was trained on",
            )
        if record["prelabelled"]:
            name = record["case"].numpy().decode()
            fix = "train without --folds, on the split that the atlas was made in"
            raise prelabelled_error(name, "among subjects to be dealt into folds", fix)
        found.setdefault(record["subject"].numpy(), set()).add(record["modality"].numpy())
    if len(found) < count:
        raise CodedError(
            "KUG-T02", "train.folds", f"{count} for {len(found)} subjects", "a subject a fold"
        )
    groups: dict = {}
    for subject, modalities in sorted(found.items()):
        groups.setdefault(tuple(sorted(modalities)), []).append(subject)
    random, order = np.random.default_rng([seed, count]), []
    for _, subjects in sorted(groups.items()):
        order += [subjects[n] for n in random.permutation(len(subjects))]
    return {subject.decode(): place % count for place, subject in enumerate(order)}


def collect(manifest, plan, budget, seed=0, paired=False, folds=1, fold=0):
    """Reads all cases of the train and val splits; keeps arrays that fit into `budget` bytes.

    Args:
        manifest: `records.Manifest`.
        plan: `config.Plan`.
        budget: Bytes; 0 keeps none, and leaves them unread.
        seed: Decides which modality a training subject with several gives.
        paired: Whether it gives all of them.
        folds: Parts that the subjects of both splits are dealt into; 1 leaves the splits.
        fold: The part that validates.

    Returns:
        Split -> `Cases`.

    Raises:
        CodedError: KUG-D14 (see `unpaired`); KUG-T02 for more folds than subjects, KUG-D37 for
            folds of synthetic images.
    """
    places = _folds(manifest, plan, folds, seed)
    result = {split: Cases(channels=plan.channels) for split in ("train", "val")}
    kept: dict[str, list] = {"train": [], "val": []}
    used = 0
    for split, file, domain, position, record in _read(manifest, plan, None if budget else HEAD):
        if places:
            split = "val" if places[record["subject"].numpy().decode()] == fold else "train"
        # A volume without labels teaches a validation nothing.
        if split == "val" and not record["labelled"]:
            continue
        cases = result[split]
        cases.add(file, position, domain, record)
        used += (4 * plan.channels + 1) * math.prod(cases.shapes[-1])
        if used <= budget:
            kept[split].append(record)
        else:
            kept[split].clear()
    for split, cases in result.items():
        complete = len(kept[split]) == len(cases.files) > 0
        if split == "train" and not paired:
            numbers = unpaired(cases, plan, seed)
            result[split] = cases.only(numbers)
            kept[split] = [kept[split][n] for n in numbers] if complete else []
        if complete:
            result[split].volumes = sampling.pack(kept[split])
    return result


def check_classes(cases, plan):
    """Refuses a class that the labelled cases of one modality have and those of another lack.

    Args:
        cases: `Cases` of the training split.
        plan: `config.Plan`.

    Raises:
        CodedError: KUG-D15.
    """
    labels = plan.labels
    labelled = [
        (plan.modalities[domain], names or labels.foreground, indices)
        for domain, names, indices in sorted(
            zip(cases.domains, cases.annotated, cases.indices, strict=True), key=lambda c: c[0]
        )
        if indices is not None
    ]
    for number, name in enumerate(labels.names):
        has: dict[str, bool] = {}
        for modality, names, indices in labelled:
            # Where nobody looked for it, it may well be there.
            if name in names:
                there = any(labels.membership[i][number] for i in indices)
                has[modality] = has.get(modality, False) or there
        if len(set(has.values())) > 1:
            lacking = [modality for modality, yes in has.items() if not yes]
            raise CodedError(
                "KUG-D15",
                f"class {name}",
                f"no training case with it in {', '.join(lacking)}",
                f"some, as in {', '.join(m for m, yes in has.items() if yes)}",
                "The discriminator would tell modalities apart by it, and the generator learn to "
                "paint it out.",
                "add such cases, leave those modalities unlabelled, or accept it: "
                "--set train.allow_missing_classes=true",
            )


def check_painting(translating, slices):
    """Refuses images painted from label maps where there is none of all that they show."""
    found = "a translating system" if translating else f"train.slices {slices}"
    if translating or slices > 1:
        raise CodedError(
            "KUG-T02",
            "train.augment",
            f"paint with {found}",
            "a system that does not translate, on single slices or in 3-D",
            "A painted image has no modality, and shows what one label map says.",
            "--augment contrast",
        )


def counts(cases, plan):
    """Modality -> number of cases, and of those with a label map."""
    every, labelled = dict.fromkeys(plan.modalities, 0), dict.fromkeys(plan.modalities, 0)
    for domain, index in zip(cases.domains, cases.indices, strict=True):
        every[plan.modalities[domain]] += 1
        labelled[plan.modalities[domain]] += index is not None
    return every, labelled
