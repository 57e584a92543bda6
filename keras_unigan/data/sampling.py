"""Which voxels a draw takes: schedule, patches around foreground, tiles that cover a volume.

Everything is a function of a seed and the number of the draw (TensorFlow's stateless random
numbers), so a sequence can start anywhere and does not depend on how many threads make it. Volumes
are held slice by slice, axes (z, x, y), because a slice or slab is then one piece of memory;
shapes, patches and coordinates stay (x, y, z). A 2-D patch is a 3-D patch of depth 1.
"""

import tensorflow as tf

from keras_unigan.config import IGNORE

# Independent streams of random numbers under one seed.
_ORDER, _SUBJECT, _PATCH, _STEP = range(4)
# What is drawn once a step, for the whole batch.
_AUGMENT, _TARGET, _NOISE = range(3)
# Entries of the uniform vector of a draw.
CASE, VOXEL, PLACE, UNKNOWN, DRAWS = 0, 1, 2, 5, 6


def _key(seed, purpose, stream, index):
    """Seed (2,) int64 of stateless operations for one purpose, stream and index."""
    first = tf.constant(seed * 65536 + purpose * 16384, tf.int64) + tf.cast(stream, tf.int64)
    return tf.stack([first, tf.cast(index, tf.int64)])


def uniforms(seed, stream, visit):
    """The random numbers of one draw: float32 (DRAWS,) in [0, 1)."""
    return tf.random.stateless_uniform([DRAWS], _key(seed, _PATCH, stream, visit))


def augmentation_seed(seed, step):
    """Seed (2,) of the augmentation of the batch of a step."""
    return _key(seed, _STEP, _AUGMENT, step)


def targets(seed, step, domain, how, modalities):
    """Modalities that the samples of a step are translated to.

    Args:
        seed: Seed of the run.
        step: Number of the step.
        domain: int32 (batch,), true modalities.
        how: "permute" (those of the batch in another order, so that as many fakes as real images of
            each are made) or "uniform".
        modalities: int32 (n,), those that "uniform" draws from.

    Returns:
        int32 (batch,). A target may be the sample's own modality; it then acts as an identity term.
    """
    random = tf.random.stateless_uniform(tf.shape(domain), _key(seed, _STEP, _TARGET, step))
    if how == "permute":
        return tf.gather(domain, tf.argsort(random))
    count = tf.shape(modalities)[0]
    index = tf.cast(random * tf.cast(count, tf.float32), tf.int32)
    return tf.gather(modalities, tf.minimum(index, count - 1))


def noise(seed, step, count):
    """The weight a of each sample in the gradient penalty: float32 (count,) in [0, 1)."""
    return tf.random.stateless_uniform([count], _key(seed, _STEP, _NOISE, step))


class Schedule:
    """Order of modalities, subjects and cases.

    Of every M draws each of M modalities gets one, in an order of their own; of the S draws of a
    modality each of its S subjects gets one; a subject with several cases draws one of them. Where
    two lists of modalities are given, each keeps this balance within itself.

    Args:
        modalities: For each modality its subjects, each a list of case numbers. Each modality is a
            stream; streams are counted on through `others`.
        seed: Seed of all orders.
        others: The same for cases that take the rest of the draws.
        share: Share of the draws that `modalities` gets, evenly spread; 1 without `others`.
    """

    def __init__(self, modalities, seed, others=(), share=1.0):
        self.seed, self.sizes, self.share = seed, (len(modalities), len(others)), share
        self.count = sum(self.sizes)
        modalities = [*modalities, *others]
        subjects = [cases for subjects in modalities for cases in subjects]
        self._subject_count = tf.constant([len(s) for s in modalities], tf.int64)
        self._first_subject = tf.cumsum(self._subject_count, exclusive=True)
        self._case_count = tf.constant([len(cases) for cases in subjects], tf.int64)
        self._first_case = tf.cumsum(self._case_count, exclusive=True)
        self._cases = tf.constant([case for cases in subjects for case in cases], tf.int64)

    def modality(self, draw):
        """Modality stream of a draw, int64, and the number of the draw within it."""
        if not self.sizes[1]:
            return self._stream(0, draw)
        before = self._before(draw)
        return tf.cond(
            self._before(draw + 1) > before,
            lambda: self._stream(0, before),
            lambda: self._stream(1, draw - before),
        )

    def visits(self, draw):
        """How often each stream was drawn before a draw: int64 (streams,)."""
        if not self.sizes[1]:
            return self._visits(0, draw)
        before = self._before(draw)
        return tf.concat([self._visits(0, before), self._visits(1, draw - before)], axis=0)

    def _before(self, draw):
        """Draws of the first list before a draw."""
        return tf.cast(tf.floor(tf.cast(draw, tf.float64) * self.share), tf.int64)

    def _order(self, part, block):
        """Streams of a list in the order of one of its blocks."""
        random = tf.random.stateless_uniform(
            [self.sizes[part]], _key(self.seed, _ORDER, part, block)
        )
        return tf.cast(tf.argsort(random) + part * self.sizes[0], tf.int64)

    def _stream(self, part, draw):
        """Stream of a list's own draw, and the number of the draw within it."""
        block = draw // self.sizes[part]
        return self._order(part, block)[draw % self.sizes[part]], block

    def _visits(self, part, draw):
        """How often each stream of a list was drawn before a list's own draw."""
        block, done = draw // self.sizes[part], draw % self.sizes[part]
        place = tf.argsort(self._order(part, block))
        return block + tf.cast(tf.cast(place, tf.int64) < done, tf.int64)

    def case(self, stream, visit):
        """Case number of the `visit`-th draw of a modality stream, int64 scalar."""
        count = self._subject_count[stream]
        subject = tf.random.experimental.index_shuffle(
            visit % count, _key(self.seed, _SUBJECT, stream, visit // count), count - 1
        )
        subject = self._first_subject[stream] + subject
        cases = self._case_count[subject]
        share = uniforms(self.seed, stream, visit)[CASE]
        which = tf.cast(share * tf.cast(cases, tf.float32), tf.int64)
        return self._cases[self._first_case[subject] + tf.minimum(which, cases - 1)]

    def wants_foreground(self, stream, visit, fraction):
        """Whether a draw must hold foreground: `fraction` of them, evenly spread."""
        phase = tf.cast(stream, tf.float64) / self.count
        share = tf.cast(visit, tf.float64) * fraction + phase
        return share - tf.floor(share) < fraction


def patch_start(shape, patch, foreground, wanted, random):
    """Draws the first voxel of a patch.

    Args:
        shape: int32 (3,), voxels of the volume.
        patch: int32 (3,).
        foreground: int32 (n, 4), coordinates and class index of foreground voxels.
        wanted: Whether the patch must hold one of them (if there are any): first a class is drawn,
            then one of its voxels, which comes to lie in the middle half of the patch.
        random: `uniforms` of the draw.

    Returns:
        int32 (3,). Negative along an axis where the volume is smaller than the patch, which then
        holds it in its middle.
    """
    size, room = tf.cast(patch, tf.float32), tf.cast(shape - patch, tf.float32)
    share = random[PLACE : PLACE + 3]
    anywhere = tf.cast(tf.floor(share * (room + 1)), tf.int32)

    def around():
        counts = tf.math.bincount(foreground[:, 3], minlength=IGNORE + 1)
        weight = tf.cumsum(1 / tf.cast(tf.gather(counts, foreground[:, 3]), tf.float32))
        # The voxels of a class weigh 1 together, so that every class is drawn as often.
        target = random[VOXEL] * tf.reduce_max(weight)
        index = tf.minimum(tf.searchsorted(weight, target[None])[0], tf.shape(weight)[0] - 1)
        return tf.gather(foreground, index)[:3] - tf.cast(size / 4 + share * size / 2, tf.int32)

    start = tf.cond(tf.logical_and(wanted, tf.shape(foreground)[0] > 0), around, lambda: anywhere)
    start = tf.clip_by_value(start, 0, tf.maximum(shape - patch, 0))
    return tf.where(shape < patch, -((patch - shape) // 2), start)


def slab(start, patch, shape):
    """Slices of a volume that a patch touches: first one and their number, int32 scalars."""
    first = tf.maximum(start[2], 0)
    return first, tf.minimum(start[2] + patch[2], shape[2]) - first


def cut(volume, start, patch, fill):
    """Cuts a patch out of a volume or slab; what lies outside is filled.

    Args:
        volume: (z, x, y) or (z, x, y, channels).
        start: int32 (3,), first voxel (x, y, z) in this array; may be negative.
        patch: int32 (3,).
        fill: Value of the outside, of the volume's type.

    Returns:
        Patch (x, y, z) or (x, y, z, channels).
    """
    axes = volume.shape.rank
    shape = tf.gather(tf.shape(volume), [1, 2, 0])
    low, high = tf.maximum(start, 0), tf.minimum(start + patch, shape)
    inner = volume[low[2] : high[2], low[0] : high[0], low[1] : high[1]]
    before, after = low - start, start + patch - high
    padding = tf.stack([tf.gather(before, [2, 0, 1]), tf.gather(after, [2, 0, 1])], axis=1)
    padding = tf.pad(padding, [[0, axes - 3], [0, 0]])
    inner = tf.cond(
        tf.reduce_any(padding > 0),
        lambda: tf.pad(inner, padding, constant_values=fill),
        lambda: inner,
    )
    return tf.transpose(inner, [1, 2, 0, 3][:axes])


def tile_counts(shape, patch):
    """Tiles along each axis that cover a volume; whole numbers or tensors."""
    return -(-shape // patch)


def tile(shape, patch, number):
    """The `number`-th of the tiles that cover a volume.

    The last tile of an axis ends with the volume, so it overlaps the one before.

    Args:
        shape: int32 (3,).
        patch: int32 (3,).
        number: int32, below the product of `tile_counts`.

    Returns:
        First voxel int32 (3,), as in `patch_start`; and the first voxel int32 (3,) that no earlier
        tile along the same axis covers, so that every voxel can be counted once.
    """
    counts = tile_counts(shape, patch)
    place = tf.stack(
        [
            number % counts[0],
            number // counts[0] % counts[1],
            number // (counts[0] * counts[1]),
        ]
    )
    fresh = place * patch
    start = tf.minimum(fresh, tf.maximum(shape - patch, 0))
    return tf.where(shape < patch, -((patch - shape) // 2), start), fresh


def forget(label_map, start, fresh):
    """Label map patch (x, y, z) with 255 where an earlier tile has counted the voxel."""
    for axis in range(3):
        length = tf.shape(label_map)[axis]
        known = tf.range(length) + start[axis] >= fresh[axis]
        known = tf.reshape(known, [-1 if a == axis else 1 for a in range(3)])
        label_map = tf.where(known, label_map, tf.constant(IGNORE, label_map.dtype))
    return label_map


def pack(kept):
    """Volumes of unequal shapes as flat tensors, so that a graph can pick one by its number.

    Args:
        kept: Dicts of `image` float32 and `label_map` uint8, both (z, x, y), the image perhaps with
            channels behind, `shape` int32 (3,), `minimum` and `statistics` of the image,
            `foreground` as in `patch_start`. The arrays are taken out, to be freed as soon as they
            are copied.

    Returns:
        Dict of tensors for `pick`.
    """
    packed = {k: tf.stack([r[k] for r in kept]) for k in ("shape", "minimum", "statistics")}
    # What a row of each flat tensor is: a voxel, or a point with its class.
    rows = {"image": kept[0]["image"].shape[3:], "label_map": (), "foreground": (4,)}
    for key, row in rows.items():
        width = (-1, *row)
        parts = [tf.reshape(r.pop(key), width) for r in kept]
        packed[key] = tf.concat(parts, axis=0)
        sizes = tf.constant([0, *[len(p) for p in parts]], tf.int64)
        packed[f"{key}_start"] = tf.cumsum(sizes)
    return packed


def pick(volumes, case):
    """One volume of a pack.

    Args:
        volumes: What `pack` returned.
        case: Its number, int64 scalar.

    Returns:
        Function(key, first slice, number of slices) -> array (slices, x, y[, channels]); and the
        volume's `shape`, `minimum`, `statistics` and `foreground`.
    """
    facts = {k: volumes[k][case] for k in ("shape", "minimum", "statistics")}
    ends = volumes["foreground_start"]
    facts["foreground"] = volumes["foreground"][ends[case] : ends[case + 1]]
    area = tf.cast(facts["shape"][0] * facts["shape"][1], tf.int64)

    def slices(key, first, count):
        start = volumes[f"{key}_start"][case] + tf.cast(first, tf.int64) * area
        flat = volumes[key][start : start + tf.cast(count, tf.int64) * area]
        return tf.reshape(flat, [count, facts["shape"][0], facts["shape"][1], *flat.shape[1:]])

    return slices, facts


def hold(volume):
    """A volume with arrays of its own, in the form of `pick`."""
    return lambda key, first, count: volume[key][first : first + count], volume


def example(source, start, patch, slices=1):
    """Cuts image and label map of one patch, and adds the volume's statistics.

    Args:
        source: What `pick` or `hold` returned.
        start: int32 (3,), first voxel (x, y, z); may be negative.
        patch: Three sizes. What lies outside the volume has its minimum, and 255 as its label.
        slices: Odd number of slices of the image around a patch of depth 1; the label map is that
            of the patch alone, in the middle.
    """
    read, facts = source
    beside = slices // 2
    places = {
        "image": (start - [0, 0, beside], (*patch[:2], patch[2] + 2 * beside), facts["minimum"]),
        "label_map": (start, patch, tf.constant(IGNORE, tf.uint8)),
    }
    result = {"statistics": facts["statistics"]}
    for key, (begin, size, fill) in places.items():
        first, count = slab(begin, size, facts["shape"])
        values = read(key, first, count)
        array = cut(values, begin - tf.stack([0, 0, first]), size, fill)
        result[key] = tf.ensure_shape(array, (*size, *values.shape[3:]))
    return result
