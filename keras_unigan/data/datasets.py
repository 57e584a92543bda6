"""Shards to training and validation streams.

Training draws patches from one unpaired stream per modality; validation covers every volume with
tiles. Draws are functions of the seed and their number (`sampling`), so the sequence does not
depend on parallelism and can start at any step.
"""

import dataclasses
import math
import os
import warnings

import tensorflow as tf

from keras_unigan.config import IGNORE, Plan, TrainOptions
from keras_unigan.data import augmentation, catalogue, records, sampling
from keras_unigan.errors import CodedError
from keras_unigan.layers import IntensityNormalization

CACHE_GIB = 1.0
"""Prepared volumes up to this size are held in memory; larger ones are read again and again."""

# Without a cache, each modality has this many volumes open, and takes this many patches of each.
STREAM_VOLUMES, STREAM_PATCHES = 4, 16

ENTRIES = ("label_map", "domain", "statistics", "known", "target", "noise", "case")
"""What a batch holds beside the image."""

WORKERS = min(4, os.cpu_count() or 1)
"""Parallel calls of each map; the result does not depend on it."""


class _Reader:
    """What training and validation streams share."""

    def __init__(self, cases, plan, spatial_dims, translated, partly):
        self.cases, self.plan, self.translated = cases, plan, translated
        chosen = plan.configuration(spatial_dims)
        self.slices = chosen.slices
        self.batch_size, self.flat = chosen.batch_size, spatial_dims == 2
        self.patch = (*chosen.patch_size, 1)[:3]
        self.normalize = IntensityNormalization.from_plan(plan)
        self.annotated = cases.annotations(plan.labels) if partly else None

    def source(self, case):
        """The volume of a case number, from the cache or its shard."""
        if self.cases.volumes is not None:
            return sampling.pick(self.cases.volumes, case)
        return sampling.hold(self.cases.fetch(case))

    def shaped(self, example, case, domain, known):
        """Example with all entries, its patch in 2-D where asked, and channels last."""
        image, label_map = example["image"], example["label_map"]
        if self.plan.channels == 1 and not self.flat:
            image = image[..., None]
        elif self.plan.channels > 1 and self.flat:
            image = image[:, :, 0]
        # Else the slices of a flat patch of one channel, one or more, are its channels.
        label_map = label_map[..., 0] if self.flat else label_map
        example = {**example, "image": image, "label_map": label_map}
        return {**example, "case": tf.cast(case, tf.int32), "domain": domain, "known": known}

    def normalized(self, batch):
        """The batch that games get; samples that are not `known` as of an unknown modality."""
        raw, statistics = batch["image"], batch["statistics"]
        domain = tf.where(batch["known"], batch["domain"], -1)
        result = {"image": self.normalize(raw, domain, statistics)}
        if self.translated:
            result["real"] = self.normalize(raw, batch["domain"], statistics)
        if self.annotated is not None:
            # What fills up a batch has the number -1, and no label to which it could matter.
            case = tf.maximum(batch["case"], 0)
            result["annotated"] = tf.gather(tf.constant(self.annotated, tf.float32), case)
        return {**result, **{key: batch[key] for key in ENTRIES}}

    def finish(self, batch):
        """A batch of examples as games get it."""
        raise NotImplementedError

    def batches(self, examples):
        """Finished batches of examples, in order whatever the parallelism."""

        def finished(batch):
            batch = self.finish(batch)
            # Keras adds the entries of replicas up to guess their shapes, which needs numbers.
            return {**batch, "known": tf.cast(batch["known"], tf.int32)}

        return (
            examples.batch(self.batch_size, drop_remainder=True)
            .map(finished, num_parallel_calls=WORKERS, deterministic=True)
            .prefetch(2)
            .with_options(catalogue.options())
        )


class _Training(_Reader):
    """The endless sequence of training draws."""

    def __init__(self, cases, plan, spatial_dims, translated, partly, seed, options, seen):
        super().__init__(cases, plan, spatial_dims, translated, partly)
        self.seed, self.options, self.seen = seed, options, seen
        self.spacing = plan.spacing[:spatial_dims]
        every = range(len(cases.names))
        labelled = [number for number in every if cases.indices[number] is not None]
        others = [number for number in every if cases.indices[number] is None]
        share = options.labelled_fraction
        if share is None or not labelled or not others:
            labelled, others, share = every, [], 1.0
        elif share in (0.0, 1.0):
            labelled, others, share = (labelled if share else others), [], 1.0
        streams, rest = (catalogue.streams(cases, part) for part in (labelled, others))
        self.stream_domains = [*streams, *rest]
        self.domains = sorted(set(self.stream_domains))
        self.schedule = sampling.Schedule([*streams.values()], seed, [*rest.values()], share)

    def draw(self, source, case, stream, visit):
        """One sample of a modality stream."""
        random = sampling.uniforms(self.seed, stream, visit)
        wanted = self.schedule.wants_foreground(stream, visit, self.options.foreground_fraction)
        facts = source[1]
        start = sampling.patch_start(
            facts["shape"], self.patch, facts["foreground"], wanted, random
        )
        domain = tf.constant(self.stream_domains, tf.int32)[stream]
        known = random[sampling.UNKNOWN] >= self.options.unknown_fraction
        example = sampling.example(source, start, self.patch, self.slices)
        return self.shaped(example, case, domain, known)

    def cached(self, first):
        """Samples from draw number `first` on, from memory."""

        def sample(index):
            stream, visit = self.schedule.modality(index)
            case = self.schedule.case(stream, visit)
            return {**self.draw(self.source(case), case, stream, visit), "index": index}

        indices = tf.data.Dataset.counter(first, dtype=tf.int64)
        return indices.map(sample, num_parallel_calls=WORKERS, deterministic=True)

    def streamed(self, first):
        """The same samples from the shards; each volume is read once for several patches."""
        visits = self.schedule.visits(first)
        streams = [self.stream(stream, visits[stream]) for stream in range(self.schedule.count)]
        indices = tf.data.Dataset.counter(first, dtype=tf.int64)
        choice = indices.map(lambda index: self.schedule.modality(index)[0])
        samples = tf.data.Dataset.choose_from_datasets(streams, choice, stop_on_empty_dataset=False)
        samples = tf.data.Dataset.zip(indices, samples)
        return samples.map(lambda index, sample: {**sample, "index": index})

    def stream(self, stream, first):
        """Samples of one modality from its `first` draw on."""
        group = STREAM_VOLUMES * STREAM_PATCHES

        def fetch(turn):
            case = self.schedule.case(stream, turn)
            return turn, case, self.cases.fetch(case)

        def patches(turn, case, volume):
            start = turn // STREAM_VOLUMES * group + turn % STREAM_VOLUMES
            visits = tf.data.Dataset.range(start, start + group, STREAM_VOLUMES)
            source = sampling.hold(volume)
            return visits.map(lambda visit: self.draw(source, case, stream, visit))

        return (
            tf.data.Dataset.counter(first // group * STREAM_VOLUMES, dtype=tf.int64)
            .map(fetch, num_parallel_calls=WORKERS, deterministic=True)
            .interleave(patches, cycle_length=STREAM_VOLUMES, block_length=1)
            .skip(first % group)
        )

    def finish(self, batch):
        """Batch with targets, normalised, augmented and noted."""
        step, options = batch["index"][0] // self.batch_size, self.options
        seed, size = sampling.augmentation_seed(self.seed, step), self.batch_size
        target = batch["domain"]
        if self.translated:
            domains = tf.constant(self.domains, tf.int32)
            target = sampling.targets(self.seed, step, target, options.targets, domains)
        noise = sampling.noise(self.seed, step, size)
        batch = self.normalized({**batch, "target": target, "noise": noise})
        share = options.contrast_fraction
        if options.augment == "contrast":
            # Normalised by its modality, tissue fills the range that is to be remapped; after that
            # nobody can know the modality.
            changed = augmentation.contrasted(seed, size, share)
            batch["known"] = tf.logical_and(batch["known"], tf.logical_not(changed))
        equalized = self.plan.unknown == "equalized"
        # The label map of a stack says nothing of the slices beside its own.
        painted = augmentation.contrast.PAINTED if self.slices == 1 else 0.0
        batch = augmentation.augment(
            batch, seed, options.augment or "light", share, self.spacing, equalized, painted
        )
        return batch if self.seen is None else self.seen.tee(batch, step)

    def endless(self, start_step):
        """All batches from a step on."""
        first = tf.cast(start_step, tf.int64) * self.batch_size
        samples = self.streamed if self.cases.volumes is None else self.cached
        return self.batches(samples(first))

    def passes(self, start_step):
        """Epochs of `steps_per_epoch` batches; each pass goes on where the last one stopped."""
        steps = self.options.steps_per_epoch
        next_step = tf.Variable(start_step, dtype=tf.int64, trainable=False)
        begin = tf.data.Dataset.from_tensors(0).map(
            lambda _: next_step.assign_add(steps, read_value=True) - steps
        )
        dataset = begin.flat_map(lambda step: self.endless(step).take(steps))
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps))
        return dataset.with_options(catalogue.options())


def _following(domains, count):
    """For each of `count` modalities, the next one that is trained (in `domains`), cyclically."""
    return [
        next(d % count for d in range(n + 1, n + 1 + count) if d % count in domains)
        for n in range(count)
    ]


class _Validation(_Reader):
    """Tiles that cover every volume; each labelled voxel counts once."""

    def __init__(self, cases, plan, spatial_dims, translated, partly, trained):
        super().__init__(cases, plan, spatial_dims, translated, partly)
        self.following = _following(trained, len(plan.modalities))

    def tiles(self, case):
        """All tiles of one volume."""
        source = self.source(case)
        shape = source[1]["shape"]

        def example(number):
            start, fresh = sampling.tile(shape, self.patch, tf.cast(number, tf.int32))
            result = sampling.example(source, start, self.patch, self.slices)
            result["label_map"] = sampling.forget(result["label_map"], start, fresh)
            domain = tf.constant(self.cases.domains, tf.int32)[case]
            return self.shaped(result, case, domain, True)

        count = tf.reduce_prod(sampling.tile_counts(shape, self.patch))
        return tf.data.Dataset.range(tf.cast(count, tf.int64)).map(example)

    def finish(self, batch):
        """Normalised batch, each sample to be translated to the next modality that is trained."""
        target = batch["domain"]
        if self.translated:
            target = tf.gather(tf.constant(self.following, tf.int32), target)
        noise = tf.fill([self.batch_size], 0.5)
        return self.normalized({**batch, "target": target, "noise": noise})

    def dataset(self):
        """All batches; the last one is filled up with unlabelled patches."""
        counts = [
            math.prod(sampling.tile_counts(n, p) for n, p in zip(shape, self.patch, strict=True))
            for shape in self.cases.shapes
        ]
        batches = -(-sum(counts) // self.batch_size)
        colours = (self.plan.channels,) * (self.plan.channels > 1)
        depth, row = self.patch[2] + self.slices - 1, tf.constant([0.0, 1.0, -1.0, 1.0])
        empty = {
            "image": tf.zeros((*self.patch[:2], depth, *colours)),
            "label_map": tf.fill(self.patch, tf.constant(IGNORE, tf.uint8)),
            "statistics": tf.broadcast_to(row, self.plan.statistics_shape),
        }
        filler = tf.data.Dataset.from_tensors(self.shaped(empty, -1, 0, True))
        filler = filler.repeat(batches * self.batch_size - sum(counts))
        examples = tf.data.Dataset.range(len(counts)).flat_map(self.tiles).concatenate(filler)
        return self.batches(examples).apply(tf.data.experimental.assert_cardinality(batches))


def plan_of(shards):
    """`config.Plan` of a folder of shards: its `plan.json`, else that of its manifest.

    Raises:
        CodedError: KUG-D01, KUG-D08 or KUG-D09 for a folder that holds none.
    """
    own = os.path.join(str(shards), "plan.json")
    if os.path.isfile(own):
        return Plan.load(own)
    return Plan.from_dict(records.Manifest.load(shards, verify=False).plan)


def configure(plan, spatial_dims, options, batch_size=None, slices=None):
    """Plan whose configuration has the patch, batch and slices of the options.

    Raises:
        CodedError: KUG-T02 for a patch of other axes than the network, or one not divisible by the
            plan's strides; for slices that are not odd, not 2-D or of several channels; or when the
            plan has no such configuration.
    """
    chosen = plan.configuration(spatial_dims)
    patch = options.patch_size or chosen.patch_size
    if len(patch) != spatial_dims:
        raise CodedError(
            "KUG-T02",
            "train.patch_size",
            f"{tuple(patch)} of {len(patch)} axes",
            f"{spatial_dims} axes, e.g. {chosen.patch_size}",
        )
    chosen = dataclasses.replace(
        chosen,
        patch_size=tuple(patch),
        batch_size=batch_size or options.batch_size or chosen.batch_size,
        slices=next(n for n in (slices, options.slices, chosen.slices) if n is not None),
    )
    configurations = {**plan.configurations, f"{spatial_dims}d": chosen}
    return dataclasses.replace(plan, configurations=configurations)


def _can_translate(cases, batch_size, targets):
    """Whether there is something to translate to."""
    return len(set(cases.domains)) > 1 and (batch_size > 1 or targets == "uniform")


def _check_translation(cases, plan, batch_size, targets):
    """Refuses what no translating game can learn from."""
    found = [plan.modalities[d] for d in sorted(set(cases.domains))]
    if len(found) < 2:
        raise CodedError(
            "KUG-D14",
            "split train",
            f"cases of {found} only",
            "at least two modalities",
            "There is nothing to translate to.",
            "add cases of another modality, or train one that does not translate: --model segan",
        )
    if targets != "permute" or batch_size >= len(found):
        return
    if batch_size == 1:
        raise CodedError(
            "KUG-T02",
            "train.batch_size",
            "1",
            "at least 2",
            "Targets are the batch's own modalities in another order: one sample has only its own.",
            f"--set train.batch_size={len(found)}, or --set train.targets=uniform",
        )
    warnings.warn(
        f"A batch of {batch_size} never holds all of {len(found)} modalities, and so never "
        "translates between some of them in one step. Use a larger train.batch_size, or "
        "train.targets=uniform.",
        UserWarning,
        stacklevel=2,
    )


def check_translating(cases, plan, spatial_dims, options):
    """Refuses training cases that no translating game can learn from, with these options.

    Args:
        cases: `catalogue.Cases` of the training split.
        plan: `config.Plan` with the patch and batch in use.
        spatial_dims: 2 or 3.
        options: `config.TrainOptions`.

    Raises:
        CodedError: As `load`: KUG-D14, KUG-D15, KUG-T02.
    """
    chosen = plan.configuration(spatial_dims)
    if options.augment == "paint":
        catalogue.check_painting(True, chosen.slices)
    _check_translation(cases, plan, chosen.batch_size, options.targets)
    if not options.allow_missing_classes:
        catalogue.check_classes(cases, plan)


# Nothing here has Python branches on tensors, and converting them takes longer than the rest.
@tf.autograph.experimental.do_not_convert
def load(
    shards,
    spatial_dims=2,
    batch_size=None,
    seed=0,
    options=None,
    start_step=0,
    endless=False,
    cache_gib=CACHE_GIB,
    translating=None,
    seen=None,
    slices=None,
    check=None,
):
    """Opens a folder of shards for training.

    Batches are dicts: `image` float32 `(batch, *patch, channels)` normalised to [-1, 1], with the
    channels of the study or, in 2.5-D, slices as channels; `label_map` uint8 `(batch, *patch)`,
    255 = not labelled; `domain` int32 `(batch,)`, the true modality also of the samples that are
    normalised as of an unknown one; `known` int32 `(batch,)`, 0 for those (and for samples of
    random contrast); `statistics` float32 `(batch, *plan.statistics_shape)`; `target` int32
    `(batch,)`, the modality to translate to; `noise` float32 `(batch,)` in [0, 1), the weight of
    the gradient penalty; `case` int32 `(batch,)`, the number of the case in its split, -1 for none.
    What was drawn comes with the batch, so that a batch split over replicas keeps it. Translating
    games also get `real`, the image as its own modality shows it: it differs where `known` is 0.
    Where some label map does not show all names, `annotated` float32 `(batch, names)` is 1 for
    those of `plan.labels.foreground` that the sample's label map shows, 0 for the others.

    A training subject with scans in several modalities gives one of them (`catalogue.unpaired`),
    unless `options.pair_subjects`.

    Args:
        shards: Folder that `unigan prepare` wrote. A `plan.json` in it may have other patches,
            batches and normalisations than the one the shards were made with.
        spatial_dims: 2 (patches of slices across z) or 3.
        batch_size: Samples a step; None takes that of the options, then of the plan.
        seed: Seed of sampling and augmentation.
        options: `config.TrainOptions`; None takes the defaults.
        start_step: Step at which the sequence starts; no step before it is computed.
        endless: Whether `train` never ends. Otherwise a pass has `steps_per_epoch` batches, and
            the next pass goes on where it stopped.
        cache_gib: Volumes up to this size in all, in GiB, are held in memory.
        translating: Whether targets are drawn as `options.targets` says; in validation each is the
            next modality that is trained. Otherwise every target is the sample's own modality, and
            there is no `real`. None: where the data and the batch allow it.
        seen: `audit.Seen` that notes every training batch, or None.
        slices: Odd number; above 1, a 2-D patch shows its neighbours across z as channels (2.5-D).
            The label map is that of the middle slice; beyond the volume lies its minimum. None
            takes that of the options, then of the plan.
        check: Function of the plan, the number of training cases of each modality, and that of
            those with a label map, which refuses what a system cannot learn from; or None.

    Returns:
        `train` and `val`, each a `tf.data.Dataset`, and the `config.Plan` with the patch and batch
        in use. Training is balanced over modalities, then subjects. `val` covers every labelled
        volume of the split, each voxel labelled once, and is None when there is none; its last
        batch is filled up with unlabelled patches.

    Raises:
        CodedError: KUG-D01, KUG-D08 or KUG-D09 for the folder (see `records.Manifest.load`),
            KUG-D14 without a training case, with one modality to translate between, or one that no
            subject is left for; KUG-D15 for a class that one of the translated modalities lacks;
            KUG-T02 for an impossible patch, for "paint" where it cannot be, for slices that are not
            odd, not 2-D or of several channels, or a batch of one whose targets are permuted.
    """
    options = options or TrainOptions()
    own = os.path.join(str(shards), "plan.json")
    plan = Plan.load(own) if os.path.isfile(own) else None
    manifest = records.Manifest.load(shards, verify=True, plan=plan)
    plan = plan or Plan.from_dict(manifest.plan)
    plan = configure(plan, spatial_dims, options, batch_size, slices)
    chosen = plan.configuration(spatial_dims)
    paired = options.pair_subjects
    parts = options.folds, options.fold
    cases = catalogue.collect(manifest, plan, int(cache_gib * 2**30), seed, paired, *parts)
    if not cases["train"].files:
        raise CodedError(
            "KUG-D14",
            shards,
            "no case of the split train",
            "at least one",
            fix="give some subjects the split train in study.json, then unigan prepare",
        )
    if translating:
        check_translating(cases["train"], plan, spatial_dims, options)
    elif options.augment == "paint":
        catalogue.check_painting(False, chosen.slices)
    elif translating is None:
        translating = _can_translate(cases["train"], chosen.batch_size, options.targets)
    if check is not None:
        check(plan, *catalogue.counts(cases["train"], plan))
    if seen is not None:
        seen.describe(cases["train"], plan)
    partly = any(0 in row for part in cases.values() for row in part.annotations(plan.labels))
    common = (plan, spatial_dims, translating, partly)
    training = _Training(cases["train"], *common, seed, options, seen)
    train = training.endless(start_step) if endless else training.passes(start_step)
    if not cases["val"].files:
        return train, None, plan
    validation = _Validation(cases["val"], *common, set(cases["train"].domains))
    return train, validation.dataset(), plan
