import csv
import itertools
import subprocess
import sys
import types

import dicoms
import keras
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from keras_unigan import config, inference, prediction
from keras_unigan.data import nifti, preprocessing
from keras_unigan.errors import CodedError

SPACING = (1.0, 1.5, 3.0)
CLASSES = config.Labels(classes={"organ": (3, 7), "lesion": (5,)})


def make_plan(labels=CLASSES, spacing=SPACING, patch=(8, 8), patch_3d=(8, 8, 4)):
    normalization = {
        "ct": config.Normalization("ct", mean=100.0, sd=50.0, low=-2.0, high=2.0),
        "t1": config.Normalization("mr", mean=0.0, sd=1.0, low=-1.5, high=2.5),
    }
    configurations = {
        "2d": config.Configuration(patch, 2, ((2, 2),), 4),
        "3d": config.Configuration(patch_3d, 2, ((2, 2, 2),), 4),
    }
    return config.Plan("study", ("ct", "t1"), labels, spacing, None, normalization, configurations)


def rotation():
    """An oblique orientation, nearest to the axes all the same."""
    a, b, c = np.radians([12, -9, 17])
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return x @ y @ z


def orientations():
    """All 48 ways to lay array axes along, or against, world axes."""
    for order, signs in itertools.product(
        itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)
    ):
        yield np.eye(3)[:, list(order)] * signs


def make_affine(axes, spacing, shape):
    """Oblique affine whose array axes follow `axes`; the volume's middle is at (20, -30, 40) mm."""
    affine = np.eye(4)
    affine[:3, :3] = rotation() @ axes @ np.diag(spacing)
    affine[:3, 3] = np.array([20, -30, 40]) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def world(affine, shape):
    """Millimetres of every voxel, `(*shape, 3)`."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def blob(points):
    """Intensity at world points: a ramp along an odd direction inside an egg, 0 outside."""
    offset = (points - [21, -29, 41]) / [6.0, 8.0, 11.0]
    ramp = 150 + points @ [6.0, 3.0, -2.0] - [20, -30, 40] @ np.array([6.0, 3.0, -2.0])
    return np.where((offset**2).sum(-1) <= 1, np.maximum(ramp, 1), 0)


def by_threshold(patches, modality, statistics):
    """Organ above 120, lesion above 170: what a perfect network of `blob` would answer."""
    index = (patches[..., 0] > 120).astype(int) + (patches[..., 0] > 170)
    return np.eye(3, dtype=np.float32)[index]


def expected_blob(points):
    return np.array([0, 3, 5])[(blob(points) > 120).astype(int) + (blob(points) > 170)]


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_label_map_lands_in_place_in_every_orientation(spatial_dims, tmp_path):
    shape, seen = (13, 11, 9), 0
    for axes in orientations():
        # Spacing belongs to the body's axes, so that each orientation has the same RAS+ grid.
        spacing = np.abs(axes).T @ SPACING
        image = nib.Nifti1Image(
            blob(world(affine := make_affine(axes, spacing, shape), shape)).astype(np.float32),
            affine,
        )
        image.header.set_xyzt_units("mm", "sec")
        image.set_qform(affine, code=1)
        image.set_sform(affine, code=4)
        result = inference.segment(
            image, make_plan(), by_threshold, "ct", spatial_dims=spatial_dims
        )
        found = np.asanyarray(result.dataobj)
        np.testing.assert_array_equal(found, expected_blob(world(result.affine, found.shape)))
        assert set(np.unique(found)) == {0, 3, 5}
        np.testing.assert_allclose(result.affine, affine, atol=1e-5)
        assert result.header.get_xyzt_units() == ("mm", "sec")
        assert (result.header["qform_code"], result.header["sform_code"]) == (1, 4)
        np.testing.assert_array_equal(result.header["pixdim"], image.header["pixdim"])
        seen += 1
    assert seen == 48
    source, target = tmp_path / "scan.nii.gz", tmp_path / "out" / "labels.nii.gz"
    nib.save(image, source)
    written = inference.segment(
        source, make_plan(), by_threshold, None, target, spatial_dims=spatial_dims
    )
    assert written == target
    saved = nib.load(target)
    assert saved.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asanyarray(saved.dataobj), found)
    for field in ("srow_x", "srow_z", "quatern_b", "qoffset_y", "pixdim", "xyzt_units"):
        np.testing.assert_array_equal(saved.header[field], image.header[field])


def test_two_dimensional_files_in_every_orientation(tmp_path):
    source, target = tmp_path / "slice.nii", tmp_path / "labels.nii"
    spacing, shape = (1.2, 1.2, 3.0), (14, 12, 1)
    for axes in orientations():
        affine = make_affine(axes, spacing, shape)
        values = blob(world(affine, shape))[..., 0].astype(np.float32)
        nib.save(nib.Nifti1Image(values, affine), source)
        inference.segment(source, make_plan(spacing=spacing), by_threshold, "t1", target)
        saved = nib.load(target)
        assert saved.shape == (14, 12)
        found = np.asanyarray(saved.dataobj)
        np.testing.assert_array_equal(found, expected_blob(world(affine, shape))[..., 0])
        assert set(np.unique(found)) == {0, 3, 5}
        np.testing.assert_allclose(saved.affine, affine, atol=1e-4)


@pytest.mark.parametrize("planned", [(1.6, 1.6, 1.6), (0.8, 2.0, 3.0)])
def test_resampled_prediction_keeps_its_place_within_a_voxel(planned):
    """A ramp in world coordinates: the border of the answer is where the ramp crosses the limit."""
    shape, direction = (15, 13, 9), np.array([5.0, 2.0, -3.0])

    def soft(patches, modality, statistics):
        above = np.clip(0.5 + (patches - 150) / 100, 0, 1)
        return np.concatenate([1 - above, above, 0 * above], -1)

    for axes in orientations():
        affine = make_affine(axes, np.abs(axes).T @ SPACING, shape)
        ramp = 150 + (world(affine, shape) - [20, -30, 40]) @ direction
        image = nib.Nifti1Image(ramp, affine)
        result = inference.segment(image, make_plan(spacing=planned), soft)
        found = np.asanyarray(result.dataobj)
        # Inside the field of view resampling keeps a ramp; at its edges voxels are repeated.
        inner = (slice(2, -2),) * 3
        sure = np.abs(ramp[inner] - 150) > 0.01
        np.testing.assert_array_equal(found[inner][sure], 3 * (ramp[inner] > 150)[sure])
        wrong = (found == 3) != (ramp > 150)
        assert np.abs(ramp[wrong] - 150).max(initial=0) < np.abs(direction).max() * max(planned)


def test_real_scans_keep_their_grid_and_header(unigan_data, tmp_path):
    with (unigan_data / "manifest.csv").open() as file:
        one = {row["dataset"]: row["image"] for row in csv.DictReader(file)}
    for name in one.values():
        image = nib.load(unigan_data / name)
        if np.prod(image.shape) > 5e6:
            continue  # the largest two take longer than all others
        array = np.asanyarray(image.dataobj)
        spacing = nifti.to_ras(nifti.read(unigan_data / name)).spacing

        def above_mean(patches, modality, statistics):
            high = patches[..., 0] > statistics[0]
            return np.eye(3, dtype=np.float32)[high.astype(int)]

        plan = make_plan(spacing=spacing, patch=(128, 128))
        target = tmp_path / f"{len(name)}.nii.gz"
        inference.segment(unigan_data / name, plan, above_mean, output=target, batch_size=64)
        result = nib.load(target)
        volume = array if array.ndim == 3 else array[..., None]
        limit = preprocessing.statistics(volume)[0]
        np.testing.assert_array_equal(np.asanyarray(result.dataobj), 3 * (array > limit))
        for field in ("dim", "qform_code", "sform_code", "pixdim", "srow_x", "srow_y", "srow_z"):
            np.testing.assert_array_equal(result.header[field], image.header[field], err_msg=name)


def test_one_channel_of_a_file_with_several(tmp_path):
    array = np.random.default_rng(0).integers(0, 99, (12, 10, 6, 2)).astype(np.int16)
    nib.save(nib.Nifti1Image(array, np.diag([1, 1, 2, 1])), tmp_path / "both.nii.gz")

    def above(patches, modality, statistics):
        return np.eye(3, dtype=np.float32)[(patches[..., 0] > 50).astype(int)]

    plan = make_plan(spacing=(1, 1, 2), patch=(16, 16))
    source, target = tmp_path / "both.nii.gz", tmp_path / "out.nii.gz"
    inference.segment(source, plan, above, output=target, channel=1)
    found = np.asanyarray(nib.load(target).dataobj)
    np.testing.assert_array_equal(found, 3 * (array[..., 1] > 50))
    with pytest.raises(CodedError, match="KUG-D10"):
        inference.segment(source, plan, above)


def test_arrays_keep_their_axes_and_their_spacing_matters():
    volume = np.zeros((12, 10, 6), np.int16)
    volume[3:9, 2:8, 1:5] = 150
    volume[5, 5, 3] = 200
    expected = np.where(volume == 200, 5, np.where(volume == 150, 3, 0))
    plan = make_plan()
    for source in (volume, volume[:, :, 3]):
        found = inference.segment(source, plan, by_threshold, "ct")
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected if source.ndim == 3 else expected[:, :, 3])
    shapes = []

    def note(patches, modality, statistics):
        shapes.append(patches.shape)
        return by_threshold(patches, modality, statistics)

    # Twice the plan's spacing: twice the voxels of the crop (6, 6, 4) on the planned grid.
    plan = make_plan(patch=(2, 2))
    inference.segment(volume, plan, note, spacing=(2.0, 3.0, 6.0), batch_size=1000)
    assert shapes[0][0] == 11 * 11 * 8


def test_regions_are_painted_in_order_with_the_studys_values():
    labels = config.Labels(regions={"whole": (1, 2, 4), "core": (1, 4), "enhancing": (4,)})
    probabilities = np.array([[0.9, 0.2, 0.1], [0.9, 0.8, 0.5], [0.9, 0.8, 0.6], [0.4, 0.5, 0.2]])
    np.testing.assert_array_equal(inference.paint(probabilities, labels), [2, 1, 4, 0])
    volume = np.zeros((8, 8, 8), np.float32)
    volume[2:6, 2:6, 2:6] = 100
    found = inference.segment(
        volume, make_plan(labels), lambda x, m, s: np.repeat(x > 50, 3, -1), "t1"
    )
    np.testing.assert_array_equal(found, 4 * (volume > 50))


def test_predict_receives_modality_and_statistics_of_the_whole_volume():
    volume = np.random.default_rng(0).uniform(1, 9, (8, 8, 4)).astype(np.float32)
    seen = []

    def predict(patches, modality, statistics):
        seen.append((modality, statistics))
        return np.concatenate([patches > 0, patches < 0, patches < 0], -1)

    inference.segment(volume, make_plan(), predict, "T1")
    assert seen[0][0] == "t1"
    expected = [volume.mean(), volume.std(), *np.percentile(volume, [0.5, 99.5])]
    np.testing.assert_allclose(seen[0][1], expected, rtol=1e-5)


def linear_network(spatial_dims):
    """Logits (0, 4 x) of a normalised voxel x."""
    conv = {2: keras.layers.Conv2D, 3: keras.layers.Conv3D}[spatial_dims](3, 1)
    image = keras.Input((None,) * spatial_dims + (1,))
    network = keras.Model(image, conv(image))
    kernel = np.zeros(conv.kernel.shape, "float32")
    kernel[..., 1] = 4
    conv.set_weights([kernel, np.array([0, 0, -50], "float32")])
    network.spatial_dims = spatial_dims
    return network


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_predictor_normalises_each_patch_by_modality_and_volume(spatial_dims):
    predictor = inference.Predictor(linear_network(spatial_dims), make_plan())
    assert predictor.spatial_dims == spatial_dims
    shape = (3, *(8, 6, 4)[:spatial_dims], 1)
    patches = np.random.default_rng(0).uniform(-50, 300, shape).astype(np.float32)
    statistics = np.array([120.0, 40.0, 10.0, 250.0], np.float32)
    ends = {"ct": (0.0, 200.0), "t1": (120 - 60, 120 + 100), None: (10.0, 250.0)}
    for modality, (low, high) in ends.items():
        x = np.clip(2 * (patches[..., 0] - low) / (high - low) - 1, -1, 1)
        expected = 1 / (1 + np.exp(-4 * x))
        found = predictor(patches, modality, statistics)
        assert found.shape == (*shape[:-1], 3)
        np.testing.assert_allclose(found[..., 1], expected, atol=1e-5)


def test_models_of_every_kind_give_the_same_label_map(tmp_path):
    from keras_unigan import networks

    keras.utils.set_random_seed(3)
    plan = make_plan()
    network = networks.NETWORKS["UNet"](channels=1, classes=3, filters=2, levels=1)
    image = np.random.default_rng(1).normal(size=(10, 9, 3)).astype(np.float32)
    expected = prediction.predict((network, plan), image, "t1")
    assert set(np.unique(expected)) <= {0, 3, 5}
    run = tmp_path / "run"
    plan.save(run / "plan.json")
    network.save(run / "network.keras")
    game = types.SimpleNamespace(network=network, plan=plan)
    for model in (run, str(run), game, inference.load(run)):
        np.testing.assert_array_equal(prediction.predict(model, image, "t1"), expected)
    with pytest.raises(ValueError, match=r"Expected model to be a run folder, .* got int"):
        prediction.predict(3, image)


def test_folders_without_a_run_are_named(tmp_path):
    with pytest.raises(CodedError, match=r"KUG-T04 .*no network.keras"):
        inference.load(tmp_path)
    (tmp_path / "network.keras").write_text("not a network")
    with pytest.raises(CodedError, match=r"KUG-T04 .*no plan.json"):
        inference.load(tmp_path)
    make_plan().save(tmp_path / "plan.json")
    with pytest.raises(CodedError, match=r"KUG-T04 .*Keras cannot load"):
        inference.load(tmp_path)


def test_a_network_that_only_translates_is_refused():
    network = types.SimpleNamespace(translate=None, spatial_dims=2)
    with pytest.raises(CodedError, match=r"KUG-T04 model: found a SimpleNamespace, which only tr"):
        inference.Predictor(network, make_plan())


def test_unknown_modality_is_refused_with_the_nearest_name():
    volume = np.zeros((4, 4, 4), np.float32)
    with pytest.raises(CodedError, match=r"KUG-T03 .*'t11' \(did you mean 't1'\?\).*'ct', 't1'"):
        inference.segment(volume, make_plan(), by_threshold, "t11")


def test_scans_of_other_kinds_give_label_maps_on_their_grid(tmp_path):
    shape, spacing = (13, 11, 9), np.array(SPACING)
    # Slices from foot to head, columns to the left, rows to the back: as DICOM likes them.
    affine = make_affine(np.diag([-1.0, -1.0, 1.0]), spacing, shape)
    values = np.rint(blob(world(affine, shape))).astype(np.int16)
    nib.MGHImage(values, affine).to_filename(str(tmp_path / "scan.mgz"))
    dicoms.write_series(tmp_path / "series", values, affine)
    nifti.write(tmp_path / "scan.nii", values, affine=affine)
    plan, maps = make_plan(), []
    for name in ("scan.nii", "scan.mgz", "series"):
        target = tmp_path / f"{name}_seg.nii.gz"
        inference.segment(tmp_path / name, plan, by_threshold, "ct", target)
        maps.append(nib.load(target))
        np.testing.assert_allclose(maps[-1].affine, affine, atol=1e-4)
        np.testing.assert_array_equal(maps[-1].get_fdata(), maps[0].get_fdata())
    assert maps[0].get_fdata().max() == 5
    Image.fromarray(values[:, :, 4].T.astype(np.uint8)).save(tmp_path / "flat.png")
    flat = inference.segment(
        tmp_path / "flat.png", make_plan(spacing=(1.0, 1.0, 1.0)), by_threshold
    )
    assert flat.shape == (13, 11, 1)


def test_wrong_sources_are_refused(tmp_path):
    plan, scan = make_plan(), tmp_path / "scan.nii.gz"
    volume = np.arange(64, dtype=np.float32).reshape(4, 4, 4)
    nifti.write(scan, volume, affine=np.eye(4))
    with pytest.raises(CodedError, match=r"KUG-E02 .*the scan itself"):
        inference.segment(scan, plan, by_threshold, output=tmp_path / "x" / ".." / "scan.nii.gz")
    with pytest.raises(CodedError, match="KUG-D01"):
        inference.segment(tmp_path / "none.nii.gz", plan, by_threshold)
    with pytest.raises(CodedError, match="KUG-D12"):
        inference.segment(volume * 0, plan, by_threshold)
    with pytest.raises(ValueError, match=r"ending in .nii or .nii.gz, got 'a.gif'"):
        inference.segment(volume, plan, by_threshold, output="a.gif")
    with pytest.raises(ValueError, match=r"an array .* got ndarray of shape \(4,\)"):
        inference.segment(volume[0, 0], plan, by_threshold)
    with pytest.raises(ValueError, match=r"3 values in spacing, got \(1.0, 1.0\)"):
        inference.segment(volume, plan, by_threshold, spacing=(1.0, 1.0))
    with pytest.raises(ValueError, match="spacing with an array only"):
        inference.segment(scan, plan, by_threshold, spacing=(1.0, 1.0, 1.0))


def test_outputs_of_files_folders_and_globs(tmp_path):
    for name in ("a_t1.nii.gz", "b_t1.nii", "b_seg.nii.gz", "notes.txt"):
        (tmp_path / name).touch()
    a, b, out = tmp_path / "a_t1.nii.gz", tmp_path / "b_t1.nii", tmp_path / "out"
    assert inference.outputs_for([a], tmp_path / "x.nii.gz") == [(a, tmp_path / "x.nii.gz")]
    both = [(a, out / "a_t1_seg.nii.gz"), (b, out / "b_t1_seg.nii.gz")]
    assert inference.outputs_for([tmp_path], out) == both
    assert inference.outputs_for([f"{tmp_path}/*_t1.*", a], out) == both
    with pytest.raises(CodedError, match=r"KUG-D01 .*none\*"):
        inference.outputs_for([tmp_path / "none*"], out)
    with pytest.raises(CodedError, match=r"KUG-T02 --output: found one file for 2 scans"):
        inference.outputs_for([tmp_path], "x.nii")
    (tmp_path / "a_t1.nii").touch()
    with pytest.raises(CodedError, match=r"KUG-E02 .*two scans of that name"):
        inference.outputs_for([a, tmp_path / "a_t1.nii"], out)
    with pytest.raises(CodedError, match=r"KUG-E02 .*the scan itself"):
        inference.outputs_for([a], a)


def test_a_remote_predict_needs_no_tensorflow():
    code = (
        "import sys, numpy as np\n"
        "sys.path.insert(0, 'tests')\n"
        "from keras_unigan import config, inference\n"
        "n = config.Normalization('mr', 0.0, 1.0, -1.0, 1.0)\n"
        "c = config.Configuration((4, 4), 2, ((2, 2),), 4)\n"
        "labels = config.Labels(classes={'organ': (6,)})\n"
        "plan = config.Plan('s', ('t1',), labels, (1., 1., 1.), None, {'t1': n}, {'2d': c})\n"
        "x = np.arange(60.).reshape(5, 4, 3)\n"
        "y = inference.segment(x, plan, lambda p, m, s: np.concatenate([p < 30, p >= 30], -1))\n"
        "assert (y == 6 * (x >= 30)).all()\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
