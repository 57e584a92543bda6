"""NIfTI-1 files in TensorFlow ops: header, voxels and label map as bytes.

Plain ops, so that a stock server reads scans too. Nothing is guessed: a file that is not one
little-endian NIfTI-1 volume of real numbers is refused by `Header.conditions`. Offsets of fields
are those of nifti1.h (https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h).
"""

import struct

import tensorflow as tf

HEADER_BYTES = 352
# NIfTI code -> (TensorFlow type, bytes, whether float32 holds every value).
TYPES = {
    2: (tf.uint8, 1, True),
    4: (tf.int16, 2, True),
    512: (tf.uint16, 2, True),
    16: (tf.float32, 4, True),
    8: (tf.int32, 4, False),
    64: (tf.float64, 8, False),
}
_GZIP = b"\x1f\x8b"


def unpack(data):
    """The bytes of a file, decompressed where it is gzip; "" for gzip that is damaged.

    The op that decompresses answers damage with DATA_LOSS, which a server would pass on, and a cut
    in silence. So its error is caught, and the length has to be the one at the end of the file.
    """

    def gunzip():
        whole = tf.data.Dataset.from_tensors(data)
        whole = whole.map(lambda packed: tf.io.decode_compressed(packed, "GZIP")).ignore_errors()
        plain = whole.reduce(tf.constant(b""), lambda _, found: found)
        length = tf.strings.length(data)
        tail = tf.strings.substr(data, tf.maximum(length - 4, 0), 4)
        tail = tf.strings.substr(tail + b"\0\0\0\0", 0, 4)
        claimed = tf.io.decode_raw(tail, tf.int32)[0]
        return tf.where(tf.equal(tf.strings.length(plain), claimed), plain, tf.constant(b""))

    packed = tf.equal(tf.strings.substr(data, 0, 2), _GZIP)
    return tf.cond(packed, gunzip, lambda: data)


class Header:
    """Fields of a header, as tensors; garbage in, garbage out, until `conditions` hold.

    Args:
        data: Bytes of an uncompressed file, string scalar.

    Attributes:
        sizes: Voxels along (x, y, z), int64.
        linear: Columns of the affine to RAS+ mm, float64 `(3, 3)`.
        wide: Whether values need float64: int32, float64, or scaled.
    """

    def __init__(self, data):
        self.length = tf.cast(tf.strings.length(data), tf.int64)
        # Of a short file zeros stand for what is missing: `substr` would quote it in its error.
        begin = tf.strings.substr(data, 0, HEADER_BYTES)
        self.head = tf.strings.substr(begin + b"\0" * HEADER_BYTES, 0, HEADER_BYTES)
        dim = tf.cast(self.field(40, tf.int16, 8), tf.int64)
        self.axes, counts = dim[0], dim[1:]
        used = tf.range(7, dtype=tf.int64) < self.axes
        counts = tf.where(used, counts, tf.ones_like(counts))
        self.sizes, self.more = counts[:3], counts[3:]
        self.datatype, self.bitpix = tf.unstack(self.field(70, tf.int16, 2))
        self.offset = self.field(108, tf.float32)
        slope, inter = tf.unstack(tf.cast(self.field(112, tf.float32, 2), tf.float64))
        self.scaled = tf.not_equal(slope, 0) & tf.math.is_finite(slope)
        self.slope, self.inter = slope, inter
        exact = [code for code, (_, _, held) in TYPES.items() if held]
        plain = tf.equal(slope, 1.0) & tf.equal(inter, 0.0)
        held = tf.reduce_any(tf.equal(self.datatype, tf.constant(exact, tf.int16)))
        self.wide = tf.logical_not(held) | (self.scaled & tf.logical_not(plain))
        self.linear, self.quaternion_fits = self._affine()

    def field(self, place, dtype, count=None):
        """One field of the header, or `count` of them in a row."""
        raw = tf.strings.substr(self.head, place, dtype.size * (count or 1))
        values = tf.io.decode_raw(raw, dtype)
        return tf.reshape(values, [] if count is None else [count])

    def _affine(self):
        """Sform, else qform, else spacing alone, as nibabel's `get_best_affine` chooses."""
        qform, sform = tf.unstack(self.field(252, tf.int16, 2))
        pixdim = tf.cast(self.field(76, tf.float32, 4), tf.float64)
        rows = tf.reshape(tf.cast(self.field(280, tf.float32, 12), tf.float64), [3, 4])[:, :3]
        b, c, d = tf.unstack(tf.cast(self.field(256, tf.float32, 3), tf.float64))
        rotation, fits = _rotation(b, c, d)
        turned = rotation * (pixdim[1:] * tf.stack([1.0, 1.0, pixdim[0]]))
        fits &= tf.reduce_all(pixdim[1:] >= 0) & tf.equal(tf.abs(pixdim[0]), 1.0)
        used = tf.range(3, dtype=tf.int64) < self.axes
        zooms = tf.where(used, pixdim[1:], tf.ones([3], tf.float64))
        plain = tf.linalg.diag(zooms * tf.constant([-1.0, 1.0, 1.0], tf.float64))
        by_sform, by_qform = tf.not_equal(sform, 0), tf.not_equal(qform, 0)
        linear = tf.where(by_sform, rows, tf.where(by_qform, turned, plain))
        # A 2-D file need not say where the next slice would be: 1 mm along the normal is neutral.
        normal = tf.linalg.cross(linear[:, 0], linear[:, 1])
        length = tf.norm(normal)
        normal /= tf.where(length > 0, length, tf.ones_like(length))
        free = tf.equal(self.axes, 2) & tf.reduce_all(tf.equal(linear[:, 2], 0))
        added = tf.concat([tf.zeros([3, 2], tf.float64), normal[:, None]], axis=1)
        return tf.where(free, linear + added, linear), by_sform | tf.logical_not(by_qform) | fits

    def conditions(self):
        """What has to hold before anything else is read, each with the text of its refusal.

        Texts have no apostrophe: the op that prints them would escape it.
        """
        size = self.field(0, tf.int32)
        swapped = int.from_bytes((348).to_bytes(4, "big"), "little")
        magic = tf.equal(tf.strings.substr(self.head, 344, 4), b"n+1\0")
        known = tf.reduce_any(tf.equal(self.datatype, tf.constant(list(TYPES), tf.int16)))
        bits = self._choose([tf.constant(8 * width, tf.int16) for _, width, _ in TYPES.values()])
        positive = tf.reduce_all(self.sizes > 0)
        # nibabel takes this shape for a surface of FreeSurfer.
        surface = tf.reduce_all(tf.equal(self.sizes, tf.constant([27307, 1, 6], tf.int64)))
        offset = tf.where(tf.math.is_finite(self.offset), self.offset, -1.0)
        whole = tf.equal(offset, tf.floor(offset)) & (offset >= 352.0) & (offset < 2.0**31)
        needed = tf.cast(tf.clip_by_value(offset, 0.0, 2.0**30), tf.int64) + self.bytes
        return [
            (self.length > 0, "nifti_bytes are empty, or gzip that is cut, damaged or in parts"),
            (size != swapped, "Big-endian NIfTI is not supported: write it little-endian"),
            (size != 540, "NIfTI-2 is not supported: write it as NIfTI-1"),
            (tf.equal(size, 348) & magic, "nifti_bytes are no NIfTI-1 file (.nii or .nii.gz)"),
            (known, "Voxel type not supported: uint8, int16, uint16, int32, float32 or float64"),
            (tf.equal(self.bitpix, bits), "The bits per voxel do not fit the voxel type"),
            (
                (self.axes >= 2) & (self.axes <= 7) & positive & tf.logical_not(surface),
                "The sizes in the header are not those of a volume",
            ),
            (
                tf.reduce_all(tf.equal(self.more, 1)),
                "The file holds more than one volume: send one of them",
            ),
            (whole, "The header says no place where voxels can begin"),
            (self.length >= needed, "The file has fewer bytes than its header claims"),
            (
                tf.logical_not(self.scaled) | tf.math.is_finite(self.inter),
                "The scale in the header is not finite",
            ),
            (self.quaternion_fits, "The qform in the header is no rotation"),
        ]

    @property
    def bytes(self):
        """Bytes of the voxels, int64."""
        widths = [tf.constant(width, tf.int64) for _, width, _ in TYPES.values()]
        return tf.reduce_prod(self.sizes) * self._choose(widths)

    def _choose(self, values):
        """Entry of a list, in the order of `TYPES`, for the file's voxel type."""
        chosen = values[0]
        for code, value in zip(list(TYPES)[1:], values[1:], strict=True):
            chosen = tf.where(tf.equal(self.datatype, code), value, chosen)
        return chosen

    def voxels(self, data, dtype):
        """Scaled values `(z, y, x)`, as NIfTI stores them.

        Args:
            data: The bytes, which depend on `conditions`.
            dtype: tf.float64 for any type, tf.float32 for those that it holds.
        """
        with tf.control_dependencies([data]):
            count = tf.cast(self.bytes, tf.int32)
            raw = tf.strings.substr(data, tf.cast(self.offset, tf.int32), count)
        codes = [c for c, (_, _, held) in TYPES.items() if held or dtype == tf.float64]

        def decode(kind):
            return lambda: tf.cast(tf.io.decode_raw(raw, kind), dtype)

        branch = tf.argmax(tf.equal(self.datatype, tf.constant(codes, tf.int16)))
        branch = tf.cast(branch, tf.int32)
        flat = tf.switch_case(branch, [decode(TYPES[code][0]) for code in codes])
        values = tf.reshape(flat, tf.reverse(tf.cast(self.sizes, tf.int32), [0]))
        values.set_shape([None, None, None])
        if dtype == tf.float64:
            values = tf.where(self.scaled, values * self.slope + self.inter, values)
        return values

    def encode(self, label_map):
        """Bytes of a `.nii` of uint8 with this header's geometry, and no text of it.

        Args:
            label_map: uint8 `(z, y, x)`.
        """

        def kept(begin, end):
            return tf.strings.substr(self.head, begin, end - begin)

        parts = [
            struct.pack("<i", 348) + b"\0" * 35,  # 39: dim_info
            kept(39, 40),
            kept(40, 56),  # dim
            b"\0" * 14 + struct.pack("<hhh", 2, 8, 0),  # intent; datatype, bitpix, slice_start
            kept(76, 108),  # pixdim
            struct.pack("<fff", 352.0, 1.0, 0.0) + b"\0" * 3,  # vox_offset, slope, inter; slices
            kept(123, 124),  # units
            b"\0" * 128,  # calibration, duration, description, aux_file
            kept(252, 328),  # qform, sform
            b"\0" * 16 + b"n+1\0" + b"\0" * 4,  # name; magic; no extension
        ]
        # The values are the last field of the serialised tensor.
        packed, count = tf.io.serialize_tensor(label_map), tf.size(label_map)
        return tf.strings.join([*parts, tf.strings.substr(packed, -count, count)])


def _rotation(b, c, d):
    """Rotation `(3, 3)` of a quaternion, and whether b, c, d are those of one.

    As nibabel's `fillpositive` and `quat2mat` do it.
    """
    rest = 1.0 - (b * b + c * c + d * d)
    near = tf.abs(rest) < 3 * 2.0**-23
    a = tf.where(near, tf.zeros_like(rest), tf.sqrt(tf.maximum(rest, 0.0)))
    s = 2.0 / (a * a + b * b + c * c + d * d)
    x, y, z = b * s, c * s, d * s
    rows = [
        [1.0 - (c * y + d * z), b * y - a * z, b * z + a * y],
        [b * y + a * z, 1.0 - (b * x + d * z), c * z - a * x],
        [b * z - a * y, c * z + a * x, 1.0 - (b * x + c * y)],
    ]
    return tf.stack([tf.stack(row) for row in rows]), near | (rest >= 0)
