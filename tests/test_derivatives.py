import json

import keras
import nibabel
import numpy as np
import pytest
from commands import unigan

from keras_unigan import config, derivatives
from keras_unigan.data import nifti
from keras_unigan.errors import CodedError

CLASSES = config.Labels(classes={"organ": (3, 4), "big lesion": (9,)})
REGIONS = config.Labels(regions={"whole": (1, 2), "core": (2,)})
SHAPE, SPACING = (12, 10, 4), (1.0, 2.0, 3.0)


@keras.saving.register_keras_serializable(package="test_derivatives")
class Threshold(keras.Model):
    """Organ above 50 raw units, lesion above 150 (normalised -0.5 and 0.5)."""

    spatial_dims, channels = 2, 1

    def __init__(self, outputs, name="threshold"):
        image = keras.Input((None, None, 1))
        super().__init__(image, keras.layers.Conv2D(outputs, 1)(image), name=name)
        self.outputs_wanted = outputs

    def get_config(self):
        return {"outputs": self.outputs_wanted, "name": self.name}


def write_run(folder, labels=CLASSES):
    window = config.Normalization("ct", mean=100.0, sd=100.0, low=-1.0, high=1.0)
    configurations = {"2d": config.Configuration((8, 8), 2, ((2, 2),), 4)}
    schemes = {"ct": window, "t1": window}
    plan = config.Plan("s", ("ct", "t1"), labels, SPACING, None, schemes, configurations)
    plan.save(folder / "plan.json")
    slopes = [(1.0, 0.5), (1.0, -0.5)] if labels.overlapping else [(0, 0), (1.0, 0.5), (2.0, 0.0)]
    network = Threshold(len(slopes))
    slope, offset = np.array(slopes, "float32").T
    network.set_weights([100 * slope.reshape(1, 1, 1, -1), 100 * offset])
    network.save(folder / "network.keras")
    return folder


def scan():
    """A box of organ (100) with a lesion (200) in air, its axes stored another way round."""
    image = np.zeros(SHAPE, np.float32)
    image[2:9, 2:8, 0:3], image[3:6, 4:6, 1] = 100, 200
    affine = np.diag([-1.0, 2, 3, 1])
    affine[0, 3] = 40
    return image, affine


def write_dataset(folder):
    """A BIDS dataset of one subject with two modalities."""
    config.write_json(folder / "dataset_description.json", {"Name": "x", "BIDSVersion": "1.10.0"})
    image, affine = scan()
    for name in ("sub-01_ses-2_run-1_T1w", "sub-01_ses-2_run-1_FLAIR"):
        path = folder / "sub-01" / "ses-2" / "anat" / f"{name}.nii.gz"
        nifti.write(path, image, affine=affine)
    return folder


def test_derivatives_of_a_dataset(tmp_path, capsys):
    run, raw = write_run(tmp_path / "run"), write_dataset(tmp_path / "raw")
    output = raw / "derivatives" / "unigan"
    given = ["predict", run, raw / "sub-01" / "ses-2" / "anat", "-o", output, "--bids"]
    assert unigan(*given, "--modality", "ct", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    base = output / "sub-01" / "ses-2" / "anat" / "sub-01_ses-2_run-1"
    found = sorted(p.relative_to(output).as_posix() for p in output.rglob("*") if p.is_file())
    names = ["dataset_description.json", "dseg.tsv"]
    for kind in ("FLAIR", "T1w"):
        start = f"sub-01/ses-2/anat/sub-01_ses-2_run-1_desc-{kind}"
        names += [f"{start}_dseg.json", f"{start}_dseg.nii.gz"]
        for label in ("biglesion", "organ"):
            start = f"sub-01/ses-2/anat/sub-01_ses-2_run-1_label-{label}_desc-{kind}"
            names.append(f"{start}_probseg.nii.gz")
    assert found == sorted(names)
    listed = [file for one in printed["scans"] for file in one["files"]]
    assert sorted(listed) == [str(output / name) for name in sorted(names)[2:]]
    assert [one["output"] for one in printed["scans"]] == printed["outputs"]
    image, affine = scan()
    dseg = nibabel.load(f"{base}_desc-T1w_dseg.nii.gz")
    np.testing.assert_array_equal(dseg.affine, affine)
    np.testing.assert_array_equal(dseg.dataobj, np.select([image > 150, image > 50], [9, 3], 0))
    organ = nibabel.load(f"{base}_label-organ_desc-T1w_probseg.nii.gz")
    assert organ.get_data_dtype() == np.float32
    np.testing.assert_array_equal(organ.affine, affine)
    np.testing.assert_allclose(organ.dataobj, image == 100, atol=1e-3)
    # The table names every value of the label map.
    assert (output / "dseg.tsv").read_text() == (
        "index\tname\n0\tbackground\n3\torgan\n9\tbig lesion\n"
    )
    description = json.loads((output / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "keras_unigan"
    assert description["GeneratedBy"][0]["Version"]
    assert description["DatasetLinks"] == {"raw": "../.."}
    side = json.loads(base.with_name(f"{base.name}_desc-T1w_dseg.json").read_text())
    source = "bids:raw:sub-01/ses-2/anat/sub-01_ses-2_run-1_T1w.nii.gz"
    assert side == {"Manual": False, "Sources": [source]}
    # Nothing is replaced unless asked, and other labels do not mix.
    assert unigan(*given) == 2
    assert "KUG-E02" in capsys.readouterr().err
    assert unigan(*given, "--overwrite", "--limit", 1, "--quiet") == 0
    with pytest.raises(CodedError, match=r"KUG-E02 .*or other labels"):
        derivatives.describe(output, REGIONS, [])


def test_derivatives_of_a_study(tmp_path, capsys):
    image, affine = scan()
    nifti.write(tmp_path / "a.nii.gz", image, affine=affine)
    visits = (("p_1", "v1", "test"), ("p_1", "v2", "test"), ("p-2", None, "train"))
    cases = tuple(config.Case(s, "ct", "a.nii.gz", split=split, visit=v) for s, v, split in visits)
    study = config.Study("study", ("ct", "t1"), REGIONS, cases, folder=str(tmp_path))
    study.save(tmp_path / "study.json")
    run, output = write_run(tmp_path / "run", REGIONS), tmp_path / "out"
    given = ["predict", run, tmp_path / "study.json", "-o", output, "--bids", "--quiet"]
    assert unigan(*given, "--split", "test") == 0
    found = sorted(p.relative_to(output).as_posix() for p in output.rglob("*_dseg.nii.gz"))
    assert found == [
        f"sub-p1/ses-{v}/anat/sub-p1_ses-{v}_desc-ct_dseg.nii.gz" for v in ("v1", "v2")
    ]
    label_map = np.asarray(nibabel.load(output / found[0]).dataobj)
    np.testing.assert_array_equal(label_map, np.select([image > 150, image > 50], [2, 1], 0))
    assert "1\twhole\n2\tcore\n" in (output / "dseg.tsv").read_text()
    side = json.loads((output / found[0].replace(".nii.gz", ".json")).read_text())
    assert side["Sources"] == ["a.nii.gz"]
    with pytest.raises(CodedError, match="KUG-D14 study: found no case in split 'val'"):
        derivatives.scans_of(study, "val")
    for wrong in (["--modality", "ct"], ["--", "--runner=DirectRunner"], [tmp_path / "a.nii.gz"]):
        assert unigan(*given, *wrong) == 2
    assert unigan("predict", tmp_path, tmp_path / "a.nii.gz", "-o", output, "--bids") == 2
    assert "which is no run folder" in capsys.readouterr().err


def test_names_of_scans():
    scan_of = derivatives.scan_of
    assert scan_of("x/ct/sub-a1_ct.nii.gz").stem() == "sub-a1/ct/sub-a1_desc-ct"
    assert scan_of("p_01 a.nii.gz", "t1").stem() == "sub-p01a/anat/sub-p01a_desc-t1"
    # A derivative's own description gives way; its suffix stays.
    told = scan_of("anat/sub-1_space-x_desc-y_T1w.nii.gz").stem("organ")
    assert told == "sub-1/anat/sub-1_space-x_label-organ_desc-T1w"
    with pytest.raises(CodedError, match=r"KUG-E02 sub-ab/anat/sub-ab_desc-image: found two"):
        derivatives.check_names([scan_of("a_b.nii"), scan_of("a-b.nii")])
