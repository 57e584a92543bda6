"""IntensityNormalization against NumPy, eagerly, in `tf.data` and in a traced graph."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from checks import plan

from keras_unigan import config
from keras_unigan.layers import (
    NORMALIZATIONS,
    IntensityNormalization,
    LocalContrast,
    equalize,
    volume_statistics,
)

CT = {"scheme": "ct", "mean": 60.0, "sd": 25.0, "low": -2.0, "high": 2.4}
MR = {"scheme": "mr", "mean": 0.0, "sd": 1.0, "low": -1.8, "high": 3.2}


def layer():
    return IntensityNormalization(["ct", "t1"], {"ct": CT, "t1": MR})


def volumes(count=3, shape=(6, 7, 5, 1), seed=0):
    """Volumes with a background frame of -1000, 0 and none."""
    generator = np.random.default_rng(seed)
    image = generator.normal(60, 30, (count, *shape)).astype("float32")
    for index, background in zip(range(count), (-1000, 0), strict=False):
        image[index, :2] = image[index, -1:] = background
    return image


def numpy_statistics(image):
    """Mean, sd, 0.5 and 99.5 percentile of what is not the value shared by all corners."""
    rows = []
    for one in image:
        corners = one[np.ix_(*[[0, -1]] * (one.ndim - 1))].ravel()
        kept = one[one != corners[0]] if (corners == corners[0]).all() else one.ravel()
        kept = kept if kept.size else one.ravel()
        rows.append([kept.mean(), kept.std(), *np.percentile(kept, [0.5, 99.5])])
    return np.asarray(rows, "float32")


def expected(image, low, high):
    return np.clip(2 * (image - low) / (high - low) - 1, -1, 1)


def test_statistics_equal_numpy():
    image = volumes()
    np.testing.assert_allclose(volume_statistics(image), numpy_statistics(image), rtol=1e-5)


def test_statistics_of_slices_and_of_one_value():
    image = np.concatenate([volumes(2, (8, 9, 1)), np.full((1, 8, 9, 1), 7.0, "float32")])
    found = volume_statistics(image)
    np.testing.assert_allclose(found, numpy_statistics(image), rtol=1e-5)
    assert found[2].numpy().tolist() == [7, 0, 7, 7]


def test_statistics_of_a_large_offset_do_not_cancel():
    image = volumes(1) / 30 + 30_000
    np.testing.assert_allclose(volume_statistics(image), numpy_statistics(image), rtol=1e-4)


def test_each_modality_by_its_scheme():
    image, statistics = volumes(), np.array([[50, 20, 11, 96]] * 3, "float32")
    found = layer()(image, np.array([0, 1, -1], "int32"), statistics)
    np.testing.assert_allclose(found[0], expected(image[0], 60 - 50, 60 + 60), atol=1e-6)
    np.testing.assert_allclose(found[1], expected(image[1], 50 - 36, 50 + 64), atol=1e-6)
    np.testing.assert_allclose(found[2], expected(image[2], 11, 96), atol=1e-6)
    assert found.dtype == tf.float32
    assert np.abs(found).max() <= 1


def test_missing_statistics_come_from_the_image():
    image, domain = volumes(), np.array([-1, 1, 1], "int32")
    statistics = numpy_statistics(image)
    given = layer()(image, domain, statistics)
    mixed = statistics.copy()
    mixed[1:] = 0
    np.testing.assert_allclose(layer()(image, domain, mixed), given, atol=1e-5)
    assert np.asarray(given[0]).min() == -1  # the background of -1000 is clipped


def test_numbers_that_are_no_index_are_unknown():
    image = volumes()
    statistics = numpy_statistics(image)
    unknown = layer()(image, np.full(3, -1, "int32"), statistics)
    for other in (2, -7, 100):
        found = layer()(image, np.full(3, other, "int32"), statistics)
        np.testing.assert_array_equal(found, unknown)


def test_constant_volume_becomes_minus_one():
    image = np.full((3, 4, 4, 1), 12.0, "float32")
    statistics = np.array([[12, 0, 12, 12]] * 3, "float32")
    found = layer()(image, np.array([0, 1, -1], "int32"), statistics).numpy()
    assert np.isfinite(found).all()
    assert (found[1:] == -1).all()


def test_integers_and_half_precision_policies_stay_exact():
    image = np.array([-1024, 100, 101, 3071], "int16").reshape(1, 2, 2, 1)
    statistics = np.array([[0, 1, -1024, 3071]], "float32")
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        found = layer()(image, np.array([-1], "int32"), statistics)
    finally:
        keras.config.set_dtype_policy(before)
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, expected(image, -1024, 3071), atol=1e-6)


def test_in_tf_data_and_in_a_graph_of_unknown_sizes():
    normalize = layer()
    image, domain = volumes(), np.array([0, 1, -1], "int32")
    statistics = numpy_statistics(image)
    statistics[1] = 0
    eager = normalize(image, domain, statistics)
    dataset = tf.data.Dataset.from_tensors((image, domain, statistics)).map(normalize)
    np.testing.assert_allclose(next(iter(dataset)), eager, atol=1e-6)
    traced = tf.function(
        lambda *inputs: normalize(*inputs),
        input_signature=[
            tf.TensorSpec((None, None, None, None, 1)),
            tf.TensorSpec((None,), tf.int32),
            tf.TensorSpec((None, 4)),
        ],
    )
    np.testing.assert_allclose(traced(image, domain, statistics), eager, atol=1e-6)


def test_from_plan_and_round_trip(tmp_path):
    a_plan = plan(modalities=("ct", "t1", "flair"))
    normalize = IntensityNormalization.from_plan(a_plan)
    assert normalize.modalities == ["ct", "t1", "flair"]
    assert normalize.parameters["t1"] == {
        "scheme": "mr",
        "mean": 50.0,
        "sd": 20.0,
        "low": -1.5,
        "high": 2.5,
    }
    inputs = [
        keras.Input((None, None, 1)),
        keras.Input((), dtype="int32"),
        keras.Input((4,)),
    ]
    model = keras.Model(inputs, normalize(*inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    image = volumes(3, (5, 6, 1))
    data = (image, np.array([0, 2, -1], "int32"), numpy_statistics(image))
    np.testing.assert_array_equal(loaded(data), normalize(*data))
    assert normalize.trainable_variables == []


def test_schemes_of_the_plan_are_those_of_the_table():
    assert set(config.SCHEMES) == set(NORMALIZATIONS)
    for scheme in NORMALIZATIONS:
        assert config.Normalization(scheme, 0.0, 1.0, -1.0, 1.0).scheme == scheme


# Scheme -> the raw intensities that become -1 and 1, by hand: data set 60 +- 25 from -2 to 2.4;
# volume 50 +- 20, percentiles 11 and 96.
ENDS = {
    "ct": (10, 120),
    "pet_suv": (10, 120),
    "mr": (10, 98),
    "xray": (10, 98),
    "ultrasound": (10, 98),
    "spect_counts": (0, 98),
    "microscopy": (11, 96),
}


@pytest.mark.parametrize("scheme", ENDS)
def test_ends_of_each_scheme_in_keras_tf_data_and_a_saved_graph(scheme, tmp_path):
    normalize = IntensityNormalization([scheme], {scheme: {**CT, "scheme": scheme}})
    image = np.linspace(-50, 150, 48, dtype="float32").reshape(1, 4, 4, 3, 1)
    data = image, np.zeros(1, "int32"), np.array([[50, 20, 11, 96]], "float32")
    eager = normalize(*data).numpy()
    np.testing.assert_allclose(eager, expected(image, *ENDS[scheme]), atol=1e-6)
    dataset = tf.data.Dataset.from_tensors(data).map(normalize)
    np.testing.assert_allclose(next(iter(dataset)), eager, atol=1e-6)
    module = tf.Module()
    specs = [
        tf.TensorSpec((None,) * 4 + (1,)),
        tf.TensorSpec((None,), tf.int32),
        tf.TensorSpec((None, 4)),
    ]
    module.run = tf.function(lambda *inputs: normalize(*inputs), input_signature=specs)
    tf.saved_model.save(module, str(tmp_path))
    np.testing.assert_allclose(tf.saved_model.load(str(tmp_path)).run(*data), eager, atol=1e-6)


@pytest.mark.parametrize("scheme", ["microscopy", "mr", "ct"])
def test_each_channel_by_its_own_statistics(scheme):
    normalize = IntensityNormalization([scheme], {scheme: {**CT, "scheme": scheme}})
    rng = np.random.default_rng(0)
    image = rng.uniform(20, 200, (2, 9, 8, 3)).astype("float32") * [1, 5, 30]
    single = np.stack([numpy_statistics(image[..., c : c + 1]) for c in range(3)], axis=1)
    domain = np.array([0, -1], "int32")
    found = normalize(image, domain, single).numpy()
    for c in range(3):
        alone = normalize(image[..., c : c + 1], domain, single[:, c])
        np.testing.assert_allclose(found[..., c : c + 1], alone, atol=1e-6)
    missing = normalize(image, domain, np.zeros_like(single))
    np.testing.assert_allclose(missing, found, atol=1e-4)
    # Together they would be 30 times as dark in one channel as in another.
    together = normalize(image, domain, numpy_statistics(image)).numpy()
    assert np.abs(together[1] - found[1]).max() > 0.5


def test_errors():
    with pytest.raises(ValueError, match=r"Expected parameters for each of .* got none for 't1'"):
        IntensityNormalization(["ct", "t1"], {"ct": CT})
    with pytest.raises(
        ValueError, match=r"Expected scheme of 'ct' in \['ct', 'microscopy', .*'pet'"
    ):
        IntensityNormalization(["ct"], {"ct": {**CT, "scheme": "pet"}})


def test_local_contrast_does_not_see_a_window():
    image = np.random.default_rng(0).uniform(-1, 1, (2, 20, 18, 1)).astype("float32")
    layer = LocalContrast(size=5, floor=1e-3)
    found = layer(image).numpy()
    np.testing.assert_array_equal(found[..., :1], image)
    patch = image[1, 3:8, 7:12, 0]
    expected = (image[1, 5, 9, 0] - patch.mean()) / patch.std()
    assert found[1, 5, 9, 1] == pytest.approx(expected, rel=1e-3)
    corner = image[0, :3, :3, 0]  # cut at the border
    expected = (image[0, 0, 0, 0] - corner.mean()) / corner.std()
    assert found[0, 0, 0, 1] == pytest.approx(expected, rel=1e-3)
    # A tenth of the range, shifted: the same local contrast.
    squeezed = layer(0.1 * image + 0.5).numpy()
    np.testing.assert_allclose(squeezed[..., 1], found[..., 1], atol=0.01)
    flat = layer(np.full((1, 8, 8, 1), 0.3, "float32")).numpy()
    np.testing.assert_allclose(flat[..., 1], 0, atol=1e-2)
    volume = np.random.default_rng(1).normal(size=(1, 6, 5, 4, 2)).astype("float32")
    assert layer(volume).shape == (1, 6, 5, 4, 4)


def test_equalized_images_are_flat_and_the_same_in_any_window():
    generator = np.random.default_rng(0)
    image = generator.uniform(-0.9, 0.9, (2, 40, 30, 1)).astype("float32") ** 3
    image[:, :10] = -1.0
    found = np.asarray(equalize(image))
    assert np.all(found[:, :10] == -1)
    # Every tenth of the range holds about a tenth of what is not background.
    for one in found[:, 10:]:
        counts = np.histogram(one, 10, (-1, 1))[0]
        np.testing.assert_allclose(counts, one.size / 10, rtol=0.1)
    # A window ten times as wide, and a gamma: the order of intensities is all that counts.
    squeezed = np.where(image > -1, 0.1 * image + 0.5, -1.0).astype("float32")
    bent = np.where(image > -1, 2 * ((image + 1) / 2) ** 1.5 - 1, -1.0).astype("float32")
    np.testing.assert_allclose(equalize(squeezed), found, atol=1e-3)
    np.testing.assert_allclose(equalize(bent), found, atol=0.02)
    # And it keeps that order.
    for before, after in zip(image, found, strict=True):
        order = np.argsort(before.ravel(), kind="stable")
        assert np.all(np.diff(after.ravel()[order]) >= 0)


def test_equalized_background_and_plateaus():
    nothing = np.full((1, 4, 4, 1), -1.0, "float32")
    np.testing.assert_array_equal(equalize(nothing), nothing)
    image = nothing.copy()
    image[0, :, 2:] = 0.25
    found = np.asarray(equalize(image))
    assert np.all(found[0, :, :2] == -1)
    assert np.all(np.isfinite(found))
    large = np.random.default_rng(0).uniform(-1, 1, (1, 300, 300, 1)).astype("float32")
    np.testing.assert_allclose(equalize(large), large, atol=0.02)


def test_equalized_in_a_graph_of_unknown_sizes():
    image = np.random.default_rng(0).uniform(-1, 1, (2, 9, 7, 1)).astype("float32")
    traced = tf.function(equalize, input_signature=[tf.TensorSpec((None, None, None, 1))])
    np.testing.assert_allclose(traced(image), equalize(image), atol=1e-6)


def test_equalized_where_nobody_knows_the_modality():
    image = volumes()
    known, statistics = np.array([0, 1, 1]), volume_statistics(image)
    unknown = np.array([0, -1, 1])
    plain = layer()
    flat = IntensityNormalization(["ct", "t1"], {"ct": CT, "t1": MR}, unknown="equalized")
    np.testing.assert_array_equal(flat(image, known, statistics), plain(image, known, statistics))
    found, ends = flat(image, unknown, statistics), plain(image, unknown, statistics)
    np.testing.assert_array_equal(found[0], ends[0])
    np.testing.assert_array_equal(found[1], equalize(ends)[1])
    np.testing.assert_array_equal(found[2], ends[2])
    # A window that is no use for the tissue is none of its concern.
    wide = image.copy()
    wide[1, 2, 2, 2] = 4000.0
    again = flat(wide, unknown, volume_statistics(wide))
    inside = image[1] != 0
    inside[2, 2, 2] = False
    assert np.abs(np.asarray(again[1] - found[1]))[inside].max() < 0.15
    with pytest.raises(ValueError, match=r"Expected unknown in .*, got 'flat'"):
        IntensityNormalization(["ct", "t1"], {"ct": CT, "t1": MR}, unknown="flat")
