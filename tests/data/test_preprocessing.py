"""Geometry in world coordinates, label indices, and the coded diagnoses."""

import dataclasses

import nibabel as nib
import numpy as np
import pytest
from grids import ORIENTATIONS, oblique_affine, oriented, world_ramp
from scipy import ndimage

from keras_unigan.config import Configuration, Labels, Normalization, Plan
from keras_unigan.data import nifti, preprocessing
from keras_unigan.errors import CodedError

LABELS = Labels(classes={"organ": (1, 4), "lesion": (2,)})
REGIONS = Labels(regions={"whole": (1, 2, 4), "core": (2, 4)})


def make_plan(spacing=(1.0, 1.0, 1.0), labels=LABELS, nearest_axis=None):
    return Plan(
        study="test",
        modalities=("t1",),
        labels=labels,
        spacing=spacing,
        nearest_axis=nearest_axis,
        normalization={"t1": Normalization("mr", 0.0, 1.0, -1.0, 1.0)},
        configurations={"2d": Configuration((16, 16), 2, ((2, 2),), 8)},
    )


def ramp_volume(shape=(8, 7, 6), orientation=ORIENTATIONS[0], border=0):
    """World ramp, zero outside `border`, stored in an orientation."""
    array = world_ramp(shape, oblique_affine())
    if border:
        inner = np.zeros(shape, bool)
        inner[(slice(border, -border),) * 3] = True
        array = np.where(inner, array, 0.0)
    _, affine = oriented(shape, oblique_affine(), orientation)
    return nifti.Volume(nib.apply_orientation(array, orientation), affine)


def test_background_value():
    image = np.zeros((3, 4, 5))
    image[1, 1, 1] = 9
    assert preprocessing.background_value(image) == 0
    assert preprocessing.background_value(image - 1000) == -1000
    image[0, 0, 4] = 1
    assert preprocessing.background_value(image) is None
    assert preprocessing.background_value(np.ones((3, 4, 1))) == 1


def test_statistics_leave_the_background_out():
    image = np.full((4, 5, 6), -3.0)
    image[1:3, 1:4, 1:5] = np.random.default_rng(0).normal(50, 10, (2, 3, 4))
    inside = image[image != -3]
    expected = [inside.mean(), inside.std(), *np.percentile(inside, (0.5, 99.5))]
    got = preprocessing.statistics(image)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_allclose(preprocessing.statistics(np.full((3, 3, 3), 7)), [7, 0, 7, 7])
    image[0, 0, 0] = 5
    assert preprocessing.statistics(image)[0] == pytest.approx(image.mean())


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32"])
def test_statistics_of_any_type_and_layout(dtype):
    """Percentiles of 16 bits are counted: they must be those of NumPy to the last bit."""
    rng = np.random.default_rng(4)
    for size in (2, 3, 40, 400):
        values = rng.normal(90, 40, (size, 3, 2)).clip(0, 255).astype(dtype)
        image = np.zeros((size + 2, 5, 4), dtype)
        image[1:-1, 1:-1, 1:-1] = values
        inside = image[image != 0].astype(np.float32)
        for stored in (image, np.asfortranarray(image)[::-1, :, ::-1]):
            got = preprocessing.statistics(stored)
            want = np.percentile(inside, (0.5, 99.5)).astype(np.float32)
            np.testing.assert_array_equal(got[2:], want)
            mask = preprocessing.nonbackground(stored)
            box = preprocessing.crop_box(stored, mask)
            np.testing.assert_array_equal(preprocessing.statistics(stored[box], mask[box]), got)
            assert mask[box].sum() == len(inside)


def test_crop_box():
    image = np.full((6, 7, 8), 2.0)
    image[2:4, 3, 5:7] = 0.0
    assert preprocessing.crop_box(image) == (slice(2, 4), slice(3, 4), slice(5, 7))
    image[0, 0, 0] = 1.0
    assert preprocessing.crop_box(image) == (slice(0, 6), slice(0, 7), slice(0, 8))


@pytest.mark.parametrize("order", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize(("n", "m"), [(7, 7), (7, 12), (12, 7), (1, 3), (5, 1)])
def test_weights_sum_to_one_and_keep_the_identity(order, n, m):
    indices, weights = preprocessing.axis_weights(n, m, order)
    assert indices.shape == weights.shape == (m, {"nearest": 1, "linear": 2, "cubic": 4}[order])
    assert indices.min() >= 0
    assert indices.max() < n
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    if n == m:
        dense = np.zeros((m, n))
        np.add.at(dense, (np.arange(m)[:, None], indices), weights)
        np.testing.assert_allclose(dense, np.eye(n), atol=1e-7)


def test_weights_by_hand():
    # Twice as many voxels: centres lie a quarter voxel beside those of the input.
    indices, weights = preprocessing.axis_weights(4, 8, "linear")
    np.testing.assert_array_equal(indices[3], [1, 2])
    np.testing.assert_allclose(weights[3], [0.75, 0.25])
    # Keys a = -0.5 at t = 0.25.
    _, weights = preprocessing.axis_weights(4, 8, "cubic")
    np.testing.assert_allclose(weights[3], [-0.0703125, 0.8671875, 0.2265625, -0.0234375])
    indices, _ = preprocessing.axis_weights(4, 8, "nearest")
    np.testing.assert_array_equal(indices.ravel(), [0, 0, 1, 1, 2, 2, 3, 3])
    with pytest.raises(ValueError, match="Expected order cubic, linear or nearest, got 'sinc'"):
        preprocessing.axis_weights(4, 8, "sinc")


def test_cubic_reproduces_a_parabola_inside():
    n, m = 12, 19
    centre = (np.arange(m) + 0.5) * n / m - 0.5
    got = preprocessing.resample(np.arange(n, dtype=float)[:, None, None] ** 2, (m, 1, 1))[:, 0, 0]
    inside = (centre > 1) & (centre < n - 2)
    np.testing.assert_allclose(got[inside], centre[inside] ** 2, rtol=1e-5, atol=1e-4)


def test_resample_takes_channels_and_a_nearest_axis():
    array = np.random.default_rng(1).normal(size=(5, 6, 3, 2))
    got = preprocessing.resample(array, (7, 6, 5), "linear", nearest_axis=2)
    assert got.shape == (7, 6, 5, 2)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got[:, :, 0], got[:, :, 1])
    first = preprocessing.resample(array[:, :, :1], (7, 6, 1), "linear")
    np.testing.assert_allclose(got[:, :, :1], first, rtol=1e-6)


@pytest.mark.parametrize("nearest_axis", [None, 1])
def test_labels_are_resampled_as_one_hot_maps(nearest_axis):
    rng = np.random.default_rng(2)
    index_map = rng.choice(np.array([0, 1, 2, 255], np.uint8), (5, 6, 7))
    shape = (8, 9, 4)
    shares = [
        preprocessing.resample(index_map == v, shape, "linear", nearest_axis)
        for v in (0, 1, 2, 255)
    ]
    expected = np.array([0, 1, 2, 255])[np.argmax(shares, axis=0)]
    got = preprocessing.resample_labels(index_map, shape, 3, nearest_axis)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, expected)
    same = preprocessing.resample_labels(index_map, index_map.shape, 3)
    np.testing.assert_array_equal(same, index_map)


@pytest.mark.parametrize("nearest_axis", [None, 0])
@pytest.mark.parametrize("shape", [(11, 3, 9), (5, 14, 21)])
def test_few_labels_are_resampled_where_they_are(shape, nearest_axis):
    """Most of a volume has one index: the shares of the others are looked at only near them."""
    index_map = np.full((7, 12, 10), 2, np.uint8)
    index_map[2:4, 5:9, 1:3] = 1
    index_map[4, 6:8, 2:7] = 255
    index_map[0, 0, 9] = 0
    shares = [
        preprocessing.resample(index_map == v, shape, "linear", nearest_axis)
        for v in (0, 1, 2, 255)
    ]
    expected = np.array([0, 1, 2, 255])[np.argmax(shares, axis=0)]
    got = preprocessing.resample_labels(index_map, shape, 3, nearest_axis)
    np.testing.assert_array_equal(got, expected)
    assert set(np.unique(got)) >= {1, 2}


def test_target_shape():
    assert preprocessing.target_shape((10, 9, 1), (1.0, 1.5, 8.0), (2.0, 1.0, 1.0)) == (5, 14, 1)
    assert preprocessing.target_shape((3, 5, 2), (1.0, 1.0, 0.1), (2.0, 2.0, 1.0)) == (2, 3, 1)


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=lambda o: "".join(map(str, o.ravel())))
@pytest.mark.parametrize("border", [0, 2])
def test_prepared_voxels_lie_where_the_affine_says(orientation, border):
    volume = ramp_volume((12, 11, 13), orientation, border)
    label = nifti.Volume((volume.array > 2400).astype(np.uint8), volume.affine)
    prepared = preprocessing.prepare(volume, make_plan((1.3, 1.1, 2.0)), label, "case")
    assert prepared.ras_shape == (12, 11, 13)
    assert prepared.box == tuple(slice(border, n - border) for n in (12, 11, 13))
    assert prepared.image.shape == prepared.label_map.shape
    spacing = nib.affines.voxel_sizes(prepared.affine)
    np.testing.assert_allclose(spacing, (1.3, 1.1, 2.0), rtol=0.12)
    inside = (slice(2, -2),) * 3
    expected = world_ramp(prepared.image.shape, prepared.affine)
    np.testing.assert_allclose(prepared.image[inside], expected[inside], atol=2e-2)
    # A linear ramp crosses the threshold where it does in the world.
    clear = np.abs(expected - 2400) > 200
    found = prepared.label_map[clear] == 1
    np.testing.assert_array_equal(found, (expected > 2400)[clear])
    assert 0 < found.mean() < 1


@pytest.mark.parametrize("orientation", ORIENTATIONS[::7], ids=lambda o: str(o.ravel()))
def test_restore_brings_probabilities_back_to_the_input_grid(orientation):
    volume = ramp_volume((12, 11, 13), orientation, border=2)
    prepared = preprocessing.prepare(volume, make_plan((0.7, 1.2, 2.0)), None, "case")
    ramp = world_ramp(prepared.image.shape, prepared.affine)
    restored = preprocessing.restore(np.stack([ramp, -ramp], axis=-1), prepared)
    assert restored.shape == (12, 11, 13, 2)
    native = nifti.from_ras(restored, volume)
    inside = nifti.from_ras(np.pad(np.ones((6, 5, 7), bool), 3), volume)
    expected = world_ramp(volume.shape, volume.affine)
    np.testing.assert_allclose(native[inside, 0], expected[inside], atol=2e-2)
    outside = nifti.from_ras(np.pad(np.zeros((8, 7, 9), bool), 2, constant_values=True), volume)
    np.testing.assert_array_equal(native[outside], np.tile([1.0, 0.0], (outside.sum(), 1)))


def test_prepare_and_restore_without_resampling_is_exact():
    volume = ramp_volume((6, 7, 8), border=1)
    label = nifti.Volume(
        np.random.default_rng(3).choice([0, 1, 2, 4, 255], volume.shape).astype(np.int32),
        volume.affine,
    )
    plan = make_plan(volume.spacing)
    prepared = preprocessing.prepare(volume, plan, label, "case")
    np.testing.assert_array_equal(prepared.image, volume.array[prepared.box].astype(np.float32))
    np.testing.assert_array_equal(prepared.statistics, preprocessing.statistics(volume.array))
    inside = preprocessing.decode_labels(prepared.label_map, LABELS)
    merged = np.where(label.array == 4, 1, label.array)
    np.testing.assert_array_equal(inside, merged[prepared.box])
    one_hot = np.eye(3, dtype=np.float32)[np.minimum(prepared.label_map, 2)]
    restored = preprocessing.restore(one_hot, prepared)
    np.testing.assert_array_equal(restored[prepared.box], one_hot)
    assert restored[0, 0, 0].tolist() == [1, 0, 0]


def test_regions_have_no_background():
    volume = ramp_volume(border=2)
    prepared = preprocessing.prepare(volume, make_plan(volume.spacing, REGIONS), None, "case")
    restored = preprocessing.restore(np.ones((*prepared.image.shape, 2)), prepared)
    assert restored[0, 0, 0].tolist() == [0, 0]
    assert restored[3, 3, 3].tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"Expected probabilities on grid \(4, 3, 2\), got"):
        preprocessing.restore(np.ones((1, 1, 1, 2)), prepared)


def test_one_slice():
    image = np.zeros((20, 30, 1), np.float32)
    image[5:15, 10:25] = np.random.default_rng(4).normal(100, 5, (10, 15, 1))
    label = (image > 100).astype(np.uint8)
    affine = np.diag([2.0, 2.0, 7.0, 1.0])
    prepared = preprocessing.prepare(
        nifti.Volume(image, affine), make_plan(), nifti.Volume(label, affine), "slice"
    )
    assert prepared.image.shape == (20, 30, 1)
    assert prepared.affine[2, 2] == pytest.approx(7.0)
    probabilities = np.stack([prepared.label_map == 0, prepared.label_map == 1], axis=-1)
    restored = preprocessing.restore(probabilities, prepared)
    assert restored.shape == (20, 30, 1, 2)
    assert (restored.argmax(-1) == label).mean() > 0.95


def test_encode_and_decode_labels():
    values = np.array([0, 1, 2, 4, 255])
    for array in (values.astype(np.int16), values * 0.99999997, values.astype(">f4")):
        encoded = preprocessing.encode_labels(array, LABELS, "a")
        assert encoded.dtype == np.uint8
        np.testing.assert_array_equal(encoded, [0, 1, 2, 1, 255])
    np.testing.assert_array_equal(
        preprocessing.encode_labels(values, REGIONS, "a"), [0, 1, 2, 3, 255]
    )
    decoded = preprocessing.decode_labels(np.array([0, 1, 2, 255], np.uint8), LABELS)
    np.testing.assert_array_equal(decoded, [0, 1, 2, 255])
    decoded = preprocessing.decode_labels(np.array([3, 2], np.uint8), REGIONS)
    np.testing.assert_array_equal(decoded, [4, 2])


@pytest.mark.parametrize(
    ("values", "labels", "text"),
    [
        ([0, 1, 3, 3], LABELS, r"KUG-D05 a: found label values 0 \(1 voxels\), .* 3 \(2 voxels\)"),
        ([0, 1, 3, 7], LABELS, r'Fix: .*"label_3": \[3\], "label_7": \[7\]'),
        ([0, 1, 3], REGIONS, r"add \[3\] to the regions"),
        ([0, 1.5], LABELS, "KUG-D05 a: found 1 voxels that are no whole number, e.g. 1.5"),
        ([0, -1], LABELS, "KUG-D05 .*values 1 to 254 for classes"),
        ([0, 1000], LABELS, "KUG-D05 .*1000"),
        ([0, 255], LABELS, "KUG-D05 .*0-255 mask .*write 1 in place of 255"),
        (np.arange(100), LABELS, "KUG-D05 .*and 88 more"),
        ([0, np.nan, np.inf], LABELS, "KUG-D06 a: found 2 NaN or infinite voxels of 3"),
    ],
)
def test_wrong_label_values(values, labels, text):
    with pytest.raises(CodedError, match=text):
        preprocessing.encode_labels(np.array(values), labels, "a")


def prepared_pair(change):
    """Prepares a case after `change(image, label)` gave two volumes back."""
    image = ramp_volume((6, 7, 8))
    label = nifti.Volume((image.array > 300).astype(np.uint8), image.affine)
    return preprocessing.prepare(*change(image, label), "case7")


def with_label(**changes):
    def change(image, label):
        return image, make_plan(), dataclasses.replace(label, **changes)

    return change


def shifted(voxels):
    affine = oblique_affine()
    affine[:3, 3] += affine[:3, 1] * voxels
    return affine


def test_label_on_another_grid():
    with pytest.raises(CodedError, match=r"KUG-D03 case7: .*\(6, 7, 8\) and label map \(6, 7, 9\)"):
        prepared_pair(with_label(array=np.zeros((6, 7, 9), np.uint8)))
    with pytest.raises(CodedError, match=r"KUG-D03 case7: .*the same sizes in another order"):
        prepared_pair(with_label(array=np.zeros((8, 7, 6), np.uint8)))
    with pytest.raises(CodedError, match=r"KUG-D04 case7: .*0\.90 mm \(0\.60 voxels\)"):
        prepared_pair(with_label(affine=shifted(0.6)))
    assert prepared_pair(with_label(affine=shifted(0.4))).label_map.any()


def test_label_stored_in_another_orientation_fits():
    image = ramp_volume((6, 7, 8))
    array = (image.array > 300).astype(np.uint8)
    _, affine = oriented(array.shape, image.affine, ORIENTATIONS[29])
    label = nifti.Volume(nib.apply_orientation(array, ORIENTATIONS[29]), affine)
    prepared = preprocessing.prepare(image, make_plan(image.spacing), label, "case")
    np.testing.assert_array_equal(prepared.label_map, array)


def test_unusable_images():
    image = ramp_volume((6, 7, 8))
    image.array[1, 2, 3] = np.nan
    with pytest.raises(CodedError, match="KUG-D06 c: found 1 NaN or infinite voxels of 336"):
        preprocessing.prepare(image, make_plan(), None, "c")
    flat = nifti.Volume(np.full((4, 4, 4), 3, np.int16), np.eye(4))
    with pytest.raises(CodedError, match="KUG-D12 c: found 3 in every voxel"):
        preprocessing.prepare(flat, make_plan(), None, "c")


def test_real_background_is_the_minimum(unigan_data):
    folder = unigan_data / "brain_tumour_flair_t1c_brats2013" / "brats_2013_pat0001_1"
    image = nifti.read(folder / "Flair_subtrMeanDivStd.nii.gz")
    assert preprocessing.background_value(image.array) == image.array.min() < 0
    mask = nifti.read(folder / "brainmask.nii.gz")
    brain = preprocessing.encode_labels(mask.array, Labels(classes={"brain": (1,)}), "mask")
    np.testing.assert_array_equal(preprocessing.nonbackground(image.array), brain == 1)


def blobs(shape, affine):
    """Two balls in the world, one in the middle of the other, and the place of each voxel."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    # The middle of the grid, so that coarse voxels are cut alike on both sides.
    centre = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    organ = np.linalg.norm(world - centre, axis=-1) < 9
    lesion = np.linalg.norm(world - centre, axis=-1) < 5
    return np.where(lesion, 2, organ).astype(np.uint8), world


@pytest.mark.parametrize("orientation", ORIENTATIONS[::11], ids=lambda o: str(o.ravel()))
@pytest.mark.parametrize("spacing", [(0.4, 0.75, 1.5), (1.3, 1.1, 2.0), (1.6, 3.0, 6.0)])
def test_labels_through_the_grid_and_back(orientation, spacing):
    """Only voxels within one target voxel of a border may change, and nothing moves."""
    shape, affine = (36, 24, 14), oblique_affine()
    truth, world = blobs(shape, affine)
    _, stored = oriented(shape, affine, orientation)
    image = nifti.Volume(nib.apply_orientation(world @ np.ones(3), orientation), stored)
    label = nifti.Volume(nib.apply_orientation(truth, orientation), stored)
    prepared = preprocessing.prepare(image, make_plan(spacing), label, "case")
    one_hot = np.eye(3, dtype=np.float32)[prepared.label_map]
    restored = preprocessing.restore(one_hot, prepared).argmax(-1)
    native = nifti.from_ras(restored, image)
    back = nib.apply_orientation(native, nib.orientations.ornt_transform(
        nib.io_orientation(stored), nib.io_orientation(affine)))  # fmt: skip
    steps = np.ceil(np.maximum(np.divide(spacing, (0.8, 1.5, 3.0)), 1)).astype(int)
    reach = tuple(2 * steps + 1)
    near = ndimage.maximum_filter(truth, reach) != ndimage.minimum_filter(truth, reach)
    assert not (back != truth)[~near].any()
    for index, radius in ((1, 9), (2, 5)):
        here, there = (world[m == index].mean(axis=0) for m in (truth, back))
        # An offset of half a voxel would be 0.4 mm at least, of half a target voxel more.
        assert np.linalg.norm(here - there) < 0.15
        volumes = [(m >= index).sum() for m in (truth, back)]
        assert abs(volumes[1] / volumes[0] - 1) < 0.4 * max(spacing) / radius
