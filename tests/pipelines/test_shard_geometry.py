"""Every voxel of a shard lies where its affine says, however the file was stored and headed."""

import nibabel as nib
import numpy as np
import pytest
from grids import ORIENTATIONS, oblique_affine, oriented, world_ramp

from keras_unigan.config import Case, Configuration, Labels, Normalization, Plan, Study
from keras_unigan.data import records
from keras_unigan.pipelines import preprocess

SHAPE, SPACING = (12, 11, 13), (1.3, 1.1, 2.1)
THRESHOLD = 2400
HEADERS = ("both", "qform", "sform", "disagree")


def write(path, array, affine, header):
    """A file whose place is told by one of four kinds of header."""
    image = nib.Nifti1Image(array, affine)
    elsewhere = oblique_affine((1.0, 1.0, 1.0), degrees=65)
    elsewhere[:3, 3] += 40
    image.set_qform(elsewhere if header == "disagree" else affine, code=1)
    image.set_sform(affine, code=1)
    if header == "sform":
        image.set_qform(elsewhere, code=0)
    elif header == "qform":
        image.set_sform(elsewhere, code=0)
    nib.save(image, path)


def turned(array, number):
    """A RAS+ array as it is stored in one of the 48 orientations: (array, affine)."""
    orientation = ORIENTATIONS[number % len(ORIENTATIONS)]
    _, affine = oriented(array.shape, oblique_affine(), orientation)
    return nib.apply_orientation(array, orientation), affine


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Records of a known ramp in 48 orientations with 4 kinds of header: id -> record.

    Each label map is stored in another orientation, with another kind of header.
    """
    folder = tmp_path_factory.mktemp("geometry")
    ramp = world_ramp(SHAPE, oblique_affine())
    cases = []
    for number in range(len(ORIENTATIONS)):
        for kind, header in enumerate(HEADERS):
            name = f"o{number:02d}{header}"
            write(folder / f"{name}.nii", *turned(ramp, number), header)
            label = (ramp > THRESHOLD).astype(np.uint8)
            write(folder / f"{name}_seg.nii", *turned(label, 5 * number + 7), HEADERS[kind - 1])
            cases.append(Case(name, "t1", f"{name}.nii", f"{name}_seg.nii", "train"))
    labels = Labels(classes={"far": (1,)})
    Study("geometry", ("t1",), labels, tuple(cases)).save(folder / "study.json")
    Plan(
        study="geometry",
        modalities=("t1",),
        labels=labels,
        spacing=SPACING,
        nearest_axis=None,
        normalization={"t1": Normalization("mr", 0.0, 1.0, -1.0, 1.0)},
        configurations={"2d": Configuration((16, 16), 2, ((2, 2),), 8)},
    ).save(folder / "plan.json")
    argv = ["--study", str(folder / "study.json"), "--plan", str(folder / "plan.json")]
    argv += ["--output", str(folder / "shards"), "--cases_per_shard", "64"]
    summary = preprocess.run(argv)
    assert (summary["dead_letters"], summary["splits"]["train"]["t1"]) == (0, 192)
    files = records.Manifest.load(folder / "shards").files("train", "t1")
    found = [{k: v.numpy() for k, v in r.items()} for r in records.read_shards(files)]
    return {record["case"].decode(): record for record in found}


def ends(shape, affine):
    """World positions of the outer corners of a grid, half a voxel beyond its centres."""
    corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in shape], [1.0])).reshape(4, -1)
    return np.sort((affine @ corners)[:3], axis=1)


@pytest.mark.parametrize("header", HEADERS)
def test_a_known_ramp_in_48_orientations(shards, header):
    for number in range(len(ORIENTATIONS)):
        record = shards[f"o{number:02d}{header}_t1"]
        image, affine = record["image"], record["affine"]
        assert nib.aff2axcodes(affine) == ("R", "A", "S")
        np.testing.assert_allclose(record["spacing"], SPACING, rtol=0.12)
        # A shift of half a voxel would move the corners by 0.5 mm and more, and the ramp by 5.
        np.testing.assert_allclose(
            ends(image.shape, affine), ends(SHAPE, oblique_affine()), atol=1e-3
        )
        expected = world_ramp(image.shape, affine)
        inside = (slice(2, -2),) * 3
        np.testing.assert_allclose(image[inside], expected[inside], atol=2e-2)
        clear = np.abs(expected - THRESHOLD) > 200
        found = record["label_map"][clear] == 1
        np.testing.assert_array_equal(found, (expected > THRESHOLD)[clear])
        assert 0 < found.mean() < 1


def test_all_headers_and_orientations_give_one_record(shards):
    first = shards["o00both_t1"]
    for record in shards.values():
        # Quaternions are stored in single precision.
        np.testing.assert_allclose(record["image"], first["image"], atol=2e-2)
        np.testing.assert_allclose(record["affine"], first["affine"], atol=1e-4)
        assert (record["label_map"] != first["label_map"]).mean() < 1e-2
