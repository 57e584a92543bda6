import json
import types

import keras
import nibabel as nib
import numpy as np
import pytest
import tensorflow as tf
from grids import ORIENTATIONS, oblique_affine, oriented

from keras_unigan import cli, config, inference, layers, networks, translation
from keras_unigan.data import nifti
from keras_unigan.errors import CodedError

SPACING = (0.8, 1.5, 3.0)
LABELS = config.Labels(classes={"organ": (3,), "lesion": (5,)})
NORMALIZATION = {
    "ct": config.Normalization("ct", mean=100.0, sd=50.0, low=-2.0, high=2.0),  # 0 to 200 HU
    "t1": config.Normalization("mr", mean=500.0, sd=100.0, low=-1.5, high=2.5),  # 350 to 750
    "flair": config.Normalization("mr", mean=80.0, sd=100.0, low=-1.5, high=2.5),  # 0 to 400
}


def make_plan(spacing=SPACING, patch=(8, 8), patch_3d=(8, 8, 4)):
    configurations = {
        "2d": config.Configuration(patch, 2, ((2, 2),), 4),
        "3d": config.Configuration(patch_3d, 2, ((2, 2, 2),), 4),
    }
    return config.Plan(
        "study", tuple(NORMALIZATION), LABELS, spacing, None, NORMALIZATION, configurations
    )


class Inverter:
    """Inverted contrast, plus a tenth of the difference of the two domain numbers."""

    def __init__(self, spatial_dims=2):
        self.spatial_dims = spatial_dims

    def translate(self, image, source, target, training=False):
        step = tf.cast(target - source, "float32") / 10
        return -image + tf.reshape(step, (-1, *[1] * (self.spatial_dims + 1)))


def scan(shape):
    """CT of a box with a ramp inside, -1000 around it."""
    array = np.full(shape, -1000, np.float32)
    box = tuple(slice(2, n - 2) for n in shape[:2])
    array[box] = np.random.default_rng(0).uniform(10, 190, array[box].shape)
    return array


def expected_t1(array):
    normalised = -(array / 100 - 1) + 0.1
    return np.where(array == -1000, 0.0, 350 + 200 * (normalised.clip(-1, 1) + 1))


def test_intensities_of_each_scheme():
    ranges = {m: translation.intensity_range(n) for m, n in NORMALIZATION.items()}
    assert ranges == {"ct": (0.0, 200.0), "t1": (350.0, 750.0), "flair": (0.0, 400.0)}
    assert [translation.background(n) for n in NORMALIZATION.values()] == [-1000.0, 0.0, 0.0]
    # What is made as CT reads as what the network meant.
    normalised = np.random.default_rng(1).uniform(-1, 1, (6, 6, 1)).astype("float32")
    inside = np.arange(36).reshape(6, 6, 1) > 3
    raw = translation.to_intensities(normalised, inside, NORMALIZATION["ct"])
    assert (raw[~inside] == -1000).all()
    normalization = layers.IntensityNormalization.from_plan(make_plan())
    back = normalization(raw[None], np.zeros(1, np.int32), np.ones((1, 4), np.float32))[0]
    np.testing.assert_allclose(np.asarray(back)[inside], normalised[inside], atol=1e-5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_image_lands_in_place_in_every_orientation(spatial_dims):
    translator = translation.Translator(Inverter(spatial_dims), make_plan())
    base = scan((13, 11, 6))
    for orientation in ORIENTATIONS[:: 1 if spatial_dims == 2 else 7]:
        _, affine = oriented(base.shape, oblique_affine(SPACING), orientation)
        array = np.ascontiguousarray(nib.apply_orientation(base, orientation))
        image = nib.Nifti1Image(array, affine)
        image.header.set_xyzt_units("mm", "sec")
        image.set_qform(affine, code=1)
        image.set_sform(affine, code=4)
        made = translation.translate(translator, image, "T1", "ct", batch_size=16)
        np.testing.assert_allclose(np.asanyarray(made.dataobj), expected_t1(array), atol=0.01)
        assert made.get_data_dtype() == np.float32
        for field in ("pixdim", "srow_x", "srow_y", "srow_z", "qform_code", "sform_code"):
            np.testing.assert_array_equal(made.header[field], image.header[field])
        assert made.header.get_xyzt_units() == ("mm", "sec")
        assert bytes(made.header["descrip"]).rstrip(b"\0") == b"SYNTHETIC (keras_unigan)"


def test_a_file_is_marked_and_says_where_it_came_from(tmp_path):
    source, output = tmp_path / "private" / "p1_ct.nii.gz", tmp_path / "out" / "p1.nii.gz"
    array = scan((14, 12, 5)).astype(np.int16)
    nifti.write(source, array, affine=oblique_affine(SPACING))
    translator = translation.Translator(Inverter(), make_plan(), "unigan")
    assert translation.translate(translator, source, "flair", "CT", output) == output
    made, scanned = nib.load(output), nib.load(source)
    assert bytes(made.header["descrip"]).startswith(b"SYNTHETIC")
    np.testing.assert_array_equal(made.affine, scanned.affine)
    assert np.asanyarray(made.dataobj).max() <= 400
    text = (tmp_path / "out" / "p1.json").read_text()
    assert "private" not in text
    record = json.loads(text)
    assert record["Synthetic"] is True
    assert record["Source"] == "p1_ct.nii.gz"
    assert (record["SourceModality"], record["TargetModality"]) == ("ct", "flair")
    assert (record["Model"], record["Network"]) == ("unigan", "Inverter")
    assert record["Intensities"] == {
        "low": 0.0, "high": 400.0, "background": 0.0, "units": "arbitrary",
    }  # fmt: skip
    assert "not a medical device" in record["Notice"]
    # An unknown modality is allowed, and said.
    translation.translate(translator, source, "ct", None, output)
    record = json.loads((tmp_path / "out" / "p1.json").read_text())
    assert record["SourceModality"] is None
    assert record["Intensities"]["units"] == "HU"
    with pytest.raises(CodedError, match="KUG-E02"):
        translation.translate(translator, source, "ct", None, source)


def test_slices_arrays_and_coarse_grids():
    translator = translation.Translator(Inverter(), make_plan())
    array = scan((14, 12, 5))
    made = translation.translate(translator, array, "t1", "ct")
    np.testing.assert_allclose(made, expected_t1(array), atol=0.01)
    one = translation.translate(translator, array[..., 2], "t1", "ct")
    np.testing.assert_allclose(one, expected_t1(array[..., 2]), atol=0.01)
    # Resampled on the way: a ramp stays a ramp inside, and nothing leaves the modality's range.
    ramp = np.broadcast_to(np.linspace(20, 180, 24)[:, None, None], (24, 12, 5)).copy()
    made = translation.translate(translator, ramp, "t1", "ct", spacing=(0.5, 1.5, 3.0))
    np.testing.assert_allclose(made[4:-4], expected_t1(ramp)[4:-4], atol=0.5)
    assert made.min() >= 350
    assert made.max() <= 750


def test_a_pair_translates_between_its_two_modalities_only():
    network = networks.PairTranslator(pair=(1, 0), filters=2, blocks=0)
    translator = translation.Translator(network, make_plan())
    asked = (("ct", "t1"), ("t1", "ct"), (None, "ct"), ("ct", "flair"), ("flair", "ct"))
    assert [translator.serves(*pair) for pair in asked] == [True, True, True, False, False]
    array = scan((12, 8, 2))
    found = translation.translate(translator, array, "t1", "ct", spacing=SPACING)
    assert np.isfinite(found).all()
    for source, target in (("flair", "t1"), ("ct", "flair"), (None, "flair")):
        with pytest.raises(CodedError, match=r"KUG-T03 .* expected two of \['t1', 'ct'\]"):
            translation.translate(translator, array, target, source, spacing=SPACING)


def test_wrong_models_and_modalities_are_refused(tmp_path):
    plan = make_plan()
    translator = translation.Translator(Inverter(), plan)
    array = scan((14, 12, 5))
    with pytest.raises(CodedError, match=r"KUG-T03 .*'flare' \(did you mean 'flair'\?\)"):
        translation.translate(translator, array, "flare", "ct")
    with pytest.raises(CodedError, match=r"KUG-T03 .*'t3'"):
        translation.translate(translator, array, "t1", "t3")
    with pytest.raises(CodedError, match="KUG-T03"):
        translation.translate(translator, array, "")
    unet = networks.NETWORKS["UNet"](channels=1, classes=3, filters=2, levels=1)
    with pytest.raises(CodedError, match=r"KUG-T04 model: found a UNet, which only segments"):
        translation.translate((unet, plan), array, "t1")
    with pytest.raises(ValueError, match=r"Expected model to be a run folder, .* got int"):
        translation.translate(3, array, "t1")
    with pytest.raises(CodedError, match=r"KUG-T04 .*no network.keras"):
        translation.translate(tmp_path, array, "t1")


@pytest.fixture(scope="module")
def stargan():
    keras.utils.set_random_seed(2)
    return networks.NETWORKS["StarGANGenerator"](domains=3, filters=2, blocks=1)


@pytest.fixture
def run(tmp_path, stargan):
    folder = tmp_path / "run"
    make_plan().save(folder / "plan.json")
    stargan.save(folder / "network.keras")
    config.Experiment("shards", str(folder), "segan").save(folder / "config.json")
    return folder


def test_models_of_every_kind_make_the_same_image(run, stargan):
    plan, array = make_plan(), scan((14, 12, 5))
    expected = translation.translate((stargan, plan), array, "t1", "ct")
    assert expected.std() > 0
    game = types.SimpleNamespace(translator=stargan, plan=plan, name="stargan")
    assert translation.load(run).name == "segan"
    for model in (str(run), game):
        np.testing.assert_allclose(
            translation.translate(model, array, "t1", "ct"), expected, atol=1e-4
        )


def test_a_run_with_two_networks_translates_with_its_translator(run, stargan):
    unet = networks.NETWORKS["UNet"](channels=1, classes=3, filters=2, levels=1)
    unet.save(run / "network.keras")
    with pytest.raises(CodedError, match=r"KUG-T04 segan: found a UNet"):
        translation.load(run)
    assert not translation.translates(run, unet)
    stargan.save(run / "translator.keras")
    assert type(translation.load(run).network) is type(stargan)
    assert translation.translates(run, unet)
    assert translation.segments(unet)
    assert not translation.segments(stargan)


def test_command_translates_a_folder(run, tmp_path, capsys):
    scans, out = tmp_path / "scans", tmp_path / "out"
    for name in ("a_ct", "b_ct", "b_seg"):
        nifti.write(scans / f"{name}.nii.gz", scan((12, 12, 4)), affine=np.diag([*SPACING, 1.0]))
    command = ["translate", str(run), str(scans), "--to", "T1", "--modality", "ct", "-o", str(out)]
    with pytest.raises(SystemExit) as end:
        cli.main(command)
    assert end.value.code == 0
    made = sorted(path.name for path in out.iterdir())
    assert made == ["a_ct_to_t1.json", "a_ct_to_t1.nii.gz", "b_ct_to_t1.json", "b_ct_to_t1.nii.gz"]
    assert "Synthetic images" in capsys.readouterr().out
    assert inference.outputs_for([out], tmp_path / "more", "to_flair")  # names may be chained
    for wrong, code, text in (
        (["--to", "flare"], 2, "KUG-T03 modality: found 'flare' (did you mean 'flair'?)"),
        (["--to", "t1"], 2, "KUG-E02"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main([*command[:3], *wrong, "-o", str(out)])
        assert end.value.code == code
        assert text in capsys.readouterr().err
