"""Whole volumes and NIfTI files through a network, inside the graph.

The road is that of `inference.segment_volume`: RAS+, crop, resample, windows, resample back, label.
Whatever cannot be done right is refused in constant words: the texts hold no part of a request.
"""

import tensorflow as tf

from keras_unigan.exporting import geometry, nifti_bytes

MOST_VALUES = 1 << 29
"""Probabilities of one volume, voxels times outputs, on either grid: 2 GiB of float32. More is
refused: a header of a few bytes may claim, or ask for by its spacing, more than any memory."""


def require(condition, text, *tensors):
    """Passes tensors on once a condition holds; the text is constant, so no value can leak."""
    with tf.control_dependencies([tf.debugging.Assert(condition, [text])]):
        passed = [tf.identity(t) for t in tensors]
    return passed[0] if len(passed) == 1 else passed


def traced(function, specs):
    """One graph of a function, for all who call it; a `tf.function` would trace it again."""
    return tf.function(function, input_signature=specs, autograph=False).get_concrete_function()


def paint(probabilities, overlapping):
    """Indices, uint8: the most probable class, or regions painted in order as 1, 2, ...

    Args:
        probabilities: `(..., outputs)`.
        overlapping: Whether outputs are regions.
    """
    if not overlapping:
        best = tf.argmax(probabilities, axis=-1, output_type=tf.int32)
        return tf.cast(best, tf.uint8)
    painted = tf.zeros_like(probabilities[..., 0], tf.uint8)
    for index in range(probabilities.shape[-1]):
        inside = probabilities[..., index] > 0.5
        painted = tf.where(inside, tf.constant(index + 1, tf.uint8), painted)
    return painted


class Segmenter:
    """Label map of one volume.

    Args:
        plan: `config.Plan`.
        dims: 2 or 3: which configuration of the plan gives the window.
        probabilities: Function of raw patches `(batch, *patch, slices)`, domains and statistics.
        outputs: Channels of its result.
    """

    def __init__(self, plan, dims, probabilities, outputs):
        self.plan, self.chosen = plan, plan.configuration(dims)
        self.probabilities, self.outputs = probabilities, outputs
        volume, row = tf.TensorSpec([None] * 3), tf.TensorSpec([4])
        number, spacing = tf.TensorSpec([], tf.int32), tf.TensorSpec([3], tf.float64)
        mask = tf.TensorSpec([None] * 3, tf.bool)
        # Signatures share them: traced once, and once in the file.
        self.windows = traced(self._windows, [volume, number, row])
        self._run = traced(self._segment, [volume, mask, spacing, number])

    def _windows(self, image, domain, statistics):
        """Probabilities `(x, y, z, outputs)` of a prepared image `(x, y, z)`.

        Args:
            image: float32, raw intensities on the plan's grid, RAS+.
            domain: int32 scalar, -1 for unknown.
            statistics: float32 `(4,)`, of the whole volume.
        """

        def predict(patches):
            count = tf.shape(patches)[0]
            rows = tf.tile(statistics[None], [count, 1])
            return self.probabilities(patches, tf.fill([count], domain), rows)

        return geometry.sliding_window(
            image,
            predict,
            self.chosen.patch_size,
            self.plan.overlap,
            self.outputs,
            self.chosen.slices,
        )

    def __call__(self, values, mask, spacing, domain):
        """Indices of a volume in RAS+, uint8 `(x, y, z)`.

        Args:
            values: float32 `(x, y, z)`, raw intensities.
            mask: Voxels that are not background.
            spacing: float64 `(3,)`, mm.
            domain: int32 scalar, -1 for unknown.
        """
        return self._run(values, mask, spacing, domain)

    def _segment(self, values, mask, spacing, domain):
        statistics = geometry.statistics(values, mask)
        begin, size = geometry.crop_box(mask)
        target = geometry.target_sizes(size, spacing, self.plan.spacing)
        values = require(
            tf.reduce_prod(target) * self.outputs <= MOST_VALUES,
            "The volume is too large at the spacing of the model",
            values,
        )
        image = geometry.resample(
            tf.slice(values, begin, size), tf.cast(target, tf.int32), "cubic",
            self.plan.nearest_axis,
        )  # fmt: skip
        probabilities = geometry.resample(self.windows(image, domain, statistics), size, "linear")
        after = tf.shape(values) - begin - size
        label_map = paint(probabilities, self.plan.labels.overlapping)
        return tf.pad(label_map, tf.stack([begin, after], axis=1))


def check_grid(linear, sizes, outputs):
    """Conditions that a grid has to meet, each with its text; see `data.nifti.check_affine`.

    Args:
        linear: Columns of the affine, float64 `(3, 3)`.
        sizes: int32 or int64 `(3,)`.
        outputs: Channels of the network.
    """
    lengths = geometry.column_lengths(linear)
    finite = tf.reduce_all(tf.math.is_finite(linear))
    spans = tf.reduce_all(tf.reduce_any(tf.not_equal(linear, 0.0), axis=0))
    known = tf.reduce_all(lengths > 1e-6) & spans
    independent = tf.abs(geometry.determinant(linear)) >= 1e-3
    voxels = tf.reduce_prod(tf.cast(sizes, tf.float64))
    return [
        (finite, "The spacing or the affine is not finite"),
        (known & independent, "The spacing is not positive, or the affine has no inverse"),
        (voxels * outputs <= MOST_VALUES, "The volume is too large"),
    ]


def to_ras(values, linear, mirrored):
    """Turns a volume to RAS+.

    Args:
        values: `(x, y, z)` of a file, or `(z, y, x)` with `mirrored`, as NIfTI stores it.
        linear: Columns of the affine, float64 `(3, 3)`.
        mirrored: Whether the axes come last to first.

    Returns:
        `(turn, back, spacing)`: function from such arrays to RAS+, its inverse, and mm per voxel in
        RAS+, float64 `(3,)`.
    """
    shape = tf.shape(values)
    sizes = tf.reverse(shape, [0]) if mirrored else shape
    targets, flipped = geometry.orientation(linear, sizes)
    sources = tf.argsort(targets)
    there = 2 - sources if mirrored else sources
    back_again = tf.reverse(targets, [0]) if mirrored else targets
    against = tf.gather(flipped, sources)

    def turn(array):
        return tf.raw_ops.Reverse(tensor=tf.transpose(array, there), dims=against)

    def back(array):
        return tf.transpose(tf.raw_ops.Reverse(tensor=array, dims=against), back_again)

    return turn, back, tf.gather(geometry.column_lengths(linear), sources)


def segment_array(segmenter, volume, spacing, domain):
    """Indices of one array in RAS+ order, uint8 of its shape.

    Args:
        segmenter: `Segmenter`.
        volume: float32 `(x, y, z)`.
        spacing: float32 `(3,)`, mm.
        domain: int32 scalar.
    """
    linear = tf.linalg.diag(tf.cast(spacing, tf.float64))
    conditions = check_grid(linear, tf.shape(volume), segmenter.outputs)
    conditions.insert(1, (tf.reduce_all(spacing > 0), "The spacing is not positive"))
    for condition, text in conditions:
        volume, linear = require(condition, text, volume, linear)
    volume = _check_values(volume)
    turn, back, spacing = to_ras(volume, linear, mirrored=False)
    values = turn(volume)
    return back(segmenter(values, geometry.foreground(values), spacing, domain))


def _check_values(values):
    finite = tf.reduce_all(tf.math.is_finite(tf.cast(values, tf.float32)))
    values = require(finite, "The volume holds NaN or infinite values", values)
    varied = tf.reduce_min(values) < tf.reduce_max(values)
    return require(varied, "The volume has the same value everywhere", values)


def segment_file(segmenter, data, domain, file_values):
    """Bytes of a label map on the grid of a NIfTI-1 file.

    Args:
        segmenter: `Segmenter`.
        data: Bytes of a `.nii` or `.nii.gz`, string scalar.
        domain: int32 scalar.
        file_values: Value of each index in files.
    """
    data = nifti_bytes.unpack(data)
    header = nifti_bytes.Header(data)
    conditions = [*header.conditions(), *check_grid(header.linear, header.sizes, segmenter.outputs)]
    for condition, text in conditions:
        data = require(condition, text, data)
    with tf.control_dependencies([data]):
        linear = tf.identity(header.linear)

    def read(dtype):
        values = _check_values(header.voxels(data, dtype))
        return tf.cast(values, tf.float32), geometry.foreground(values)

    # Values that float32 does not hold are compared with the background in float64.
    values, mask = tf.cond(header.wide, lambda: read(tf.float64), lambda: read(tf.float32))
    turn, back, spacing = to_ras(values, linear, mirrored=True)
    label_map = back(segmenter(turn(values), turn(mask), spacing, domain))
    return header.encode(
        tf.gather(tf.constant(file_values, tf.uint8), tf.cast(label_map, tf.int32))
    )
