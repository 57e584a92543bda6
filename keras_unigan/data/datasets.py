"""Shards to training and validation streams.

Training draws patches from one unpaired stream per modality; validation covers every volume with
tiles. Draws are functions of the seed and their number (`sampling`), so the sequence does not
depend on parallelism and can start at any step.
"""

import dataclasses
import math
import os

import tensorflow as tf

from keras_unigan.config import IGNORE, Plan, TrainOptions
from keras_unigan.data import augmentation, records, sampling
from keras_unigan.errors import CodedError
from keras_unigan.layers import IntensityNormalization

CACHE_GIB = 1.0
"""Prepared volumes up to this size are held in memory; larger ones are read again and again."""

# Without a cache, each modality has this many volumes open, and takes this many patches of each.
STREAM_VOLUMES, STREAM_PATCHES = 4, 16

WORKERS = min(4, os.cpu_count() or 1)
"""Parallel calls of each map; the result does not depend on it."""


@dataclasses.dataclass
class _Cases:
    """Where cases lie, in the order of their numbers; arrays as tensors where they are cached."""

    files: list = dataclasses.field(default_factory=list)
    positions: list = dataclasses.field(default_factory=list)
    subjects: list = dataclasses.field(default_factory=list)
    domains: list = dataclasses.field(default_factory=list)
    shapes: list = dataclasses.field(default_factory=list)
    volumes: dict | None = None


def _arrange(serialized):
    """One record as what patches are cut from; see `sampling` for the order of axes."""
    record = records.parse(serialized)
    image, label_map = record["image"], record["label_map"]
    foreground = record["foreground"]
    classes = tf.cast(tf.gather_nd(label_map, foreground), tf.int32)
    return {
        "image": tf.transpose(image, [2, 0, 1]),
        "label_map": tf.transpose(label_map, [2, 0, 1]),
        "shape": tf.shape(image),
        "minimum": tf.reduce_min(image),
        "foreground": tf.concat([foreground, classes[:, None]], axis=1),
        "statistics": record["statistics"],
        "labelled": record["labelled"],
        "subject": record["subject"],
    }


def _collect(manifest, plan, budget):
    """Reads all cases of the train and val splits; keeps arrays that fit into `budget` bytes."""
    shards = [
        (file, split, domain)
        for split in ("train", "val")
        for domain, modality in enumerate(plan.modalities)
        for file in manifest.files(split, modality)
    ]
    result, kept = {"train": _Cases(), "val": _Cases()}, {"train": [], "val": []}
    if not shards:
        return result
    numbers = tf.data.Dataset.range(len(shards))
    files = tf.constant([file for file, _, _ in shards])
    dataset = numbers.flat_map(
        lambda number: (
            tf.data.TFRecordDataset(files[number], "GZIP")
            .enumerate()
            .map(lambda position, serialized: (number, position, _arrange(serialized)))
        )
    )
    used = 0
    for number, position, record in dataset.with_options(_options()):
        file, split, domain = shards[number]
        # A volume without labels teaches a validation nothing.
        if split == "val" and not record["labelled"]:
            continue
        cases = result[split]
        cases.files.append(file)
        cases.positions.append(int(position))
        cases.subjects.append(record["subject"].numpy().decode())
        cases.domains.append(domain)
        cases.shapes.append(tuple(record["shape"].numpy().tolist()))
        used += 5 * math.prod(cases.shapes[-1])
        if used <= budget:
            kept[split].append(record)
        else:
            kept[split].clear()
    for split, cases in result.items():
        if len(kept[split]) == len(cases.files) > 0:
            cases.volumes = sampling.pack(kept[split])
    return result


def _options():
    """Fixed threads: the autotuner's own thread can hold up an epoch's end as long as it took."""
    options = tf.data.Options()
    options.autotune.enabled = False
    options.deterministic = True
    # Of several workers each takes its own batches; files have nothing to do with it.
    policy = tf.data.experimental.AutoShardPolicy.DATA
    options.experimental_distribute.auto_shard_policy = policy
    return options


def _fetch(cases, case):
    """One volume read from its shard."""
    file = tf.constant(cases.files)[case]
    position = tf.constant(cases.positions, tf.int64)[case]
    dataset = tf.data.TFRecordDataset(file, "GZIP").skip(position).take(1)
    return _arrange(dataset.get_single_element())


class _Reader:
    """What training and validation streams share."""

    def __init__(self, cases, plan, patch, batch_size):
        self.cases, self.plan, self.batch_size = cases, plan, batch_size
        self.patch, self.flat = (*patch, 1)[:3], len(patch) == 2
        self.normalize = IntensityNormalization.from_plan(plan)

    def source(self, case):
        """The volume of a case number, from the cache or its shard."""
        if self.cases.volumes is not None:
            return sampling.pick(self.cases.volumes, case)
        return sampling.hold(_fetch(self.cases, case))

    def shaped(self, example, domain, known):
        """Example with all entries, its patch in 2-D where asked."""
        if self.flat:
            example = {**example, **{k: example[k][..., 0] for k in ("image", "label_map")}}
        return {**example, "domain": domain, "known": known}

    def finish(self, batch):
        """Normalises a batch, samples that are not `known` as of an unknown modality."""
        domain = tf.where(batch["known"], batch["domain"], -1)
        image = self.normalize(batch["image"][..., None], domain, batch["statistics"])
        keys = ("label_map", "domain", "statistics")
        return {"image": image, **{key: batch[key] for key in keys}}

    def batches(self, examples):
        """Finished batches of examples, in order whatever the parallelism."""
        return (
            examples.batch(self.batch_size, drop_remainder=True)
            .map(self.finish, num_parallel_calls=WORKERS, deterministic=True)
            .prefetch(2)
            .with_options(_options())
        )


class _Training(_Reader):
    """The endless sequence of training draws."""

    def __init__(self, cases, plan, patch, batch_size, seed, options):
        super().__init__(cases, plan, patch, batch_size)
        self.seed, self.options = seed, options
        self.domains = sorted(set(cases.domains))
        streams = []
        for domain in self.domains:
            subjects = {}
            for number, subject in enumerate(cases.subjects):
                if cases.domains[number] == domain:
                    subjects.setdefault(subject, []).append(number)
            streams.append(list(subjects.values()))
        self.schedule = sampling.Schedule(streams, seed)

    def draw(self, source, stream, visit):
        """One sample of a modality stream."""
        random = sampling.uniforms(self.seed, stream, visit)
        wanted = self.schedule.wants_foreground(stream, visit, self.options.foreground_fraction)
        facts = source[1]
        start = sampling.patch_start(
            facts["shape"], self.patch, facts["foreground"], wanted, random
        )
        domain = tf.constant(self.domains, tf.int32)[stream]
        known = random[sampling.UNKNOWN] >= self.options.unknown_fraction
        return self.shaped(sampling.example(source, start, self.patch), domain, known)

    def cached(self, first):
        """Samples from draw number `first` on, from memory."""

        def sample(index):
            stream, visit = self.schedule.modality(index)
            case = self.schedule.case(stream, visit)
            return {**self.draw(self.source(case), stream, visit), "index": index}

        indices = tf.data.Dataset.counter(first, dtype=tf.int64)
        return indices.map(sample, num_parallel_calls=WORKERS, deterministic=True)

    def streamed(self, first):
        """The same samples from the shards; each volume is read once for several patches."""
        count = self.schedule.count
        # Whole blocks of one draw a modality, less those of the first block that are done.
        done = first % count
        streams = [self.stream(stream, first // count) for stream in range(count)]
        indices = tf.data.Dataset.counter(first - done, dtype=tf.int64)
        choice = indices.map(lambda index: self.schedule.modality(index)[0])
        samples = tf.data.Dataset.choose_from_datasets(streams, choice, stop_on_empty_dataset=False)
        samples = tf.data.Dataset.zip(indices, samples).skip(done)
        return samples.map(lambda index, sample: {**sample, "index": index})

    def stream(self, stream, first):
        """Samples of one modality from its `first` draw on."""
        group = STREAM_VOLUMES * STREAM_PATCHES

        def fetch(turn):
            return turn, _fetch(self.cases, self.schedule.case(stream, turn))

        def patches(turn, volume):
            start = turn // STREAM_VOLUMES * group + turn % STREAM_VOLUMES
            visits = tf.data.Dataset.range(start, start + group, STREAM_VOLUMES)
            return visits.map(lambda visit: self.draw(sampling.hold(volume), stream, visit))

        return (
            tf.data.Dataset.counter(first // group * STREAM_VOLUMES, dtype=tf.int64)
            .map(fetch, num_parallel_calls=WORKERS, deterministic=True)
            .interleave(patches, cycle_length=STREAM_VOLUMES, block_length=1)
            .skip(first % group)
        )

    def finish(self, batch):
        """Normalised and augmented batch."""
        step = batch["index"][0] // self.batch_size
        batch = super().finish(batch)
        if not self.options.augment:
            return batch
        return augmentation.augment(batch, sampling.augmentation_seed(self.seed, step))

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
        return dataset.with_options(_options())


class _Validation(_Reader):
    """Tiles that cover every volume; each labelled voxel counts once."""

    def tiles(self, case):
        """All tiles of one volume."""
        source = self.source(case)
        shape = source[1]["shape"]

        def example(number):
            start, fresh = sampling.tile(shape, self.patch, tf.cast(number, tf.int32))
            result = sampling.example(source, start, self.patch)
            result["label_map"] = sampling.forget(result["label_map"], start, fresh)
            domain = tf.constant(self.cases.domains, tf.int32)[case]
            return self.shaped(result, domain, True)

        count = tf.reduce_prod(sampling.tile_counts(shape, self.patch))
        return tf.data.Dataset.range(tf.cast(count, tf.int64)).map(example)

    def dataset(self):
        """All batches; the last one is filled up with unlabelled patches."""
        counts = [
            math.prod(sampling.tile_counts(n, p) for n, p in zip(shape, self.patch, strict=True))
            for shape in self.cases.shapes
        ]
        batches = -(-sum(counts) // self.batch_size)
        empty = {
            "image": tf.zeros(self.patch),
            "label_map": tf.fill(self.patch, tf.constant(IGNORE, tf.uint8)),
            "statistics": tf.constant([0.0, 1.0, -1.0, 1.0]),
        }
        filler = tf.data.Dataset.from_tensors(self.shaped(empty, 0, True))
        filler = filler.repeat(batches * self.batch_size - sum(counts))
        examples = tf.data.Dataset.range(len(counts)).flat_map(self.tiles).concatenate(filler)
        return self.batches(examples).apply(tf.data.experimental.assert_cardinality(batches))


def configure(plan, spatial_dims, options, batch_size=None):
    """Plan whose configuration has the patch and batch of the options.

    Raises:
        CodedError: KUG-T02 for a patch of other axes than the network, or one not divisible by the
            plan's strides; or when the plan has no such configuration.
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
    )
    configurations = {**plan.configurations, f"{spatial_dims}d": chosen}
    return dataclasses.replace(plan, configurations=configurations)


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
):
    """Opens a folder of shards for training.

    Batches are dicts: `image` float32 `(batch, *patch, 1)` normalised to [-1, 1]; `label_map` uint8
    `(batch, *patch)`, 255 = not labelled; `domain` int32 `(batch,)`, the true modality also of the
    samples that are normalised as of an unknown one; `statistics` float32 `(batch, 4)`.

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

    Returns:
        `train` and `val`, each a `tf.data.Dataset`, and the `config.Plan` with the patch and batch
        in use. Training is balanced over modalities, then subjects. `val` covers every labelled
        volume of the split, each voxel labelled once, and is None when there is none; its last
        batch is filled up with unlabelled patches.

    Raises:
        CodedError: KUG-D01, KUG-D08 or KUG-D09 for the folder (see `records.Manifest.load`),
            KUG-D14 without a training case, KUG-T02 for an impossible patch.
    """
    options = options or TrainOptions()
    own = os.path.join(str(shards), "plan.json")
    plan = Plan.load(own) if os.path.isfile(own) else None
    manifest = records.Manifest.load(shards, verify=True, plan=plan)
    plan = configure(plan or Plan.from_dict(manifest.plan), spatial_dims, options, batch_size)
    chosen = plan.configuration(spatial_dims)
    cases = _collect(manifest, plan, int(cache_gib * 2**30))
    if not cases["train"].files:
        raise CodedError(
            "KUG-D14",
            shards,
            "no case of the split train",
            "at least one",
            fix="give some subjects the split train in study.json, then unigan prepare",
        )
    common = (plan, chosen.patch_size, chosen.batch_size)
    training = _Training(cases["train"], *common, seed, options)
    train = training.endless(start_step) if endless else training.passes(start_step)
    val = _Validation(cases["val"], *common).dataset() if cases["val"].files else None
    return train, val, plan
