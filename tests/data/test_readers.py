"""Layouts as other people write them, and what is said of those that are wrong."""

import json

import nibabel as nib
import numpy as np
import pytest

from keras_unigan.config import Case, Labels, Study
from keras_unigan.data import cases, nifti, readers
from keras_unigan.errors import CodedError
from keras_unigan.pipelines import sources


def put(path, shape=(2, 2, 2), value=1):
    """Writes a tiny file of one value; with four axes each channel adds 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.full(shape, value, np.int16)
    if len(shape) == 4:
        array += np.arange(shape[3], dtype=np.int16)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)


def describe(folder, file="dataset.json", /, **data):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(json.dumps(data))


def rows(found, folder):
    """What matters of cases, with paths relative to the folder."""

    def short(name):
        return name and name.removeprefix(f"{folder}/")

    return [
        (c.subject, c.visit, c.modality, short(c.image), c.channel, short(c.label), c.split)
        for c in found.cases
    ]


MSD = {
    "name": "BRATS",
    "modality": {"0": "FLAIR", "1": "T1w"},
    "labels": {"0": "background", "1": "edema", "2": "tumour", "3": "tumour"},
    "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
    "test": ["./imagesTs/b.nii.gz"],
}


def test_msd(tmp_path):
    describe(tmp_path, **MSD)
    put(tmp_path / "imagesTr" / "a.nii.gz", (2, 2, 2, 2))
    put(tmp_path / "imagesTs" / "b.nii.gz", (2, 2, 2, 2))
    put(tmp_path / "labelsTr" / "a.nii.gz")
    assert readers.detect(tmp_path) == "msd"
    found = readers.read(tmp_path)
    assert rows(found, tmp_path) == [
        ("a", None, "flair", "imagesTr/a.nii.gz", 0, "labelsTr/a.nii.gz", None),
        ("a", None, "t1w", "imagesTr/a.nii.gz", 1, "labelsTr/a.nii.gz", None),
        ("b", None, "flair", "imagesTs/b.nii.gz", 0, None, "test"),
        ("b", None, "t1w", "imagesTs/b.nii.gz", 1, None, "test"),
    ]
    assert (found.name, found.modalities) == ("BRATS", ("flair", "t1w"))
    assert found.labels == Labels(classes={"edema": (1,), "tumour": (2, 3)})
    study = cases.init_study(tmp_path, tmp_path / "study.json")
    study.save(tmp_path / "study.json")
    study = Study.load(tmp_path / "study.json")
    # One modality of a training subject stays; the jobs read that channel and no other.
    for case in sources.load_study(tmp_path / "study.json").cases:
        image, label = sources.read_case(case)
        assert image.shape == (2, 2, 2)
        assert (image.array == 1 + case.channel).all()
        assert (label is None) == (case.split == "test")
    assert [c.channel for c in study.cases if c.split == "test"] == [0, 1]
    put(tmp_path / "imagesTr" / "a.nii.gz", (2, 2, 2, 3))
    with pytest.raises(
        CodedError, match=r"KUG-D10 .*a.nii.gz: found 3 channels, expected 2: flair"
    ):
        readers.read(tmp_path)


def test_a_channel_that_is_not_there(tmp_path):
    put(tmp_path / "a.nii.gz", (2, 2, 2, 2))
    with pytest.raises(CodedError, match=r"KUG-D10 .*channel 2"):
        nifti.read(tmp_path / "a.nii.gz", 2)
    with pytest.raises(CodedError, match="KUG-D08 s_t1: found channel -1"):
        Case("s", "t1", "a.nii", channel=-1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modality": {"1": "x"}}, r"KUG-D08 .*dataset.json modality: "),
        ({"modality": {"0": "CT", "1": "ct"}}, "KUG-D08 .*a name of its own"),
        ({"labels": {"1": "a", "x": [1.5, "y"]}}, "KUG-D08 .*whole numbers"),
        ({"labels": [1]}, "KUG-D08 .*labels: found list"),
        ({"training": {"image": "a"}}, "KUG-D08 .*training: found dict"),
        ({"training": [3]}, r"KUG-D08 .*training\[0\]: found 3"),
        ({"training": [], "test": []}, "KUG-D01 .*no image under training"),
        ({"training": [{"image": "c.nii"}]}, r"KUG-D01 .*c.nii: found no such file"),
        ({"training": [{"image": "dataset.json"}]}, "KUG-D07 .*no NIfTI"),
    ],
)
def test_msd_that_is_wrong(change, message, tmp_path):
    describe(tmp_path, **{**MSD, **change})
    put(tmp_path / "imagesTr" / "a.nii.gz", (2, 2, 2, 2))
    put(tmp_path / "imagesTs" / "b.nii.gz", (2, 2, 2, 2))
    with pytest.raises(CodedError, match=message):
        readers.read(tmp_path)


def test_nnunet(tmp_path):
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    describe(
        tmp_path,
        channel_names={"0": "T1", "1": "FLAIR"},
        labels=labels | {"ignore": 255},
        regions_class_order=[1, 2, 3],
        file_ending=".nii",
    )
    for name in ("imagesTr/a_1_0000", "imagesTr/a_1_0001", "imagesTs/b_0001", "labelsTr/a_1"):
        put(tmp_path / f"{name}.nii")
    put(tmp_path / "labelsTs" / "b.nii")
    assert readers.detect(tmp_path) == "nnunet"
    found = readers.read(tmp_path)
    assert rows(found, tmp_path) == [
        ("a_1", None, "t1", "imagesTr/a_1_0000.nii", None, "labelsTr/a_1.nii", None),
        ("a_1", None, "flair", "imagesTr/a_1_0001.nii", None, "labelsTr/a_1.nii", None),
        ("b", None, "flair", "imagesTs/b_0001.nii", None, "labelsTs/b.nii", "test"),
    ]
    regions = {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert found.labels == Labels(regions=regions)
    put(tmp_path / "labelsTr" / "c.nii")
    with pytest.raises(CodedError, match=r"KUG-D02 .*1 label maps without image: c.nii"):
        readers.read(tmp_path)
    (tmp_path / "labelsTr" / "c.nii").unlink()
    put(tmp_path / "imagesTr" / "a_1_0002.nii")
    with pytest.raises(CodedError, match=r"KUG-D08 .*found channel 2"):
        readers.read(tmp_path)


def test_nnunet_of_version_1_and_its_ignore_label(tmp_path):
    put(tmp_path / "imagesTr" / "a_0000.nii.gz")
    put(tmp_path / "labelsTr" / "a.nii.gz")
    describe(tmp_path, modality={"0": "CT"}, labels={"0": "background", "1": "liver"})
    assert readers.detect(tmp_path) == "nnunet"
    assert readers.read(tmp_path).labels == Labels(classes={"liver": (1,)})
    describe(tmp_path, channel_names={"0": "CT"}, labels={"liver": 1, "ignore": 2})
    with pytest.raises(CodedError, match=r"KUG-D08 .*an ignore label of value 2, expected 255"):
        readers.read(tmp_path)
    describe(tmp_path / "empty", channel_names={"0": "CT"}, labels={"liver": 1})
    with pytest.raises(CodedError, match=r"KUG-D01 .*seen: 1 \*.json, expected imagesTr"):
        readers.read(tmp_path / "empty")


def test_brats_old_and_new(tmp_path):
    old = "HGG/BraTS19_2013_10_1/BraTS19_2013_10_1"
    new = "BraTS-GLI-00005-100/BraTS-GLI-00005-100"
    older = "brats_2013_pat0001_1"
    names = [f"{old}_{m}" for m in ("flair", "t1", "t1ce", "t2", "seg")]
    names += [f"{new}-{m}" for m in ("t1c", "t1n", "t2f", "t2w", "seg")]
    names += [f"{older}/{m}" for m in ("Flair_normalised", "T1c_x", "OTMultiClass", "brainmask")]
    for name in names:
        put(tmp_path / f"{name}.nii.gz")
    assert readers.detect(tmp_path) == "brats"
    assert [
        (c.subject, c.visit, c.modality, c.label.removeprefix(f"{tmp_path}/"))
        for c in readers.read(tmp_path).cases
    ] == [
        *[("BraTS-GLI-00005", "100", m, f"{new}-seg.nii.gz") for m in ("t1c", "t1n", "t2f", "t2w")],
        *[
            ("BraTS19_2013_10_1", None, m, f"{old}_seg.nii.gz")
            for m in ("flair", "t1", "t1ce", "t2")
        ],
        *[(older, None, m, f"{older}/OTMultiClass.nii.gz") for m in ("flair", "t1c")],
    ]
    put(tmp_path / older / "other_flair.nii.gz")
    with pytest.raises(CodedError, match=rf"KUG-D13 {older} flair: found .* and .*"):
        readers.read(tmp_path)


def test_bids(tmp_path):
    raw = ["sub-01/ses-a/anat/sub-01_ses-a_T1w", "sub-01/ses-a/anat/sub-01_ses-a_ce-gad_T1w"]
    raw += ["sub-02/anat/sub-02_FLAIR", "sub-02/pet/sub-02_pet", "sub-02/func/sub-02_task-x_bold"]
    lab = "derivatives/labels"
    maps = [f"{lab}/sub-01/ses-a/anat/sub-01_ses-a_dseg", f"{lab}/sub-02/anat/sub-02_dseg"]
    maps += [f"{lab}/sub-02/anat/sub-02_desc-pet_dseg", f"{lab}/sub-02/anat/sub-02_space-MNI_dseg"]
    for name in (*raw, *maps, "sub-02/anat/sub-02_defacemask"):
        put(tmp_path / f"{name}.nii.gz")
    describe(tmp_path, "dataset_description.json", Name="Study", BIDSVersion="1.10.0")
    source = ["bids::sub-02/pet/sub-02_pet.nii.gz"]
    describe(tmp_path / f"{lab}/sub-02/anat", "sub-02_desc-pet_dseg.json", Sources=source)
    people = tmp_path / "participants.tsv"
    people.write_text("participant_id\tage\tsite\tsplit\nsub-02\t50\tUlm\ttest\nsub-01\tn/a\tn/a\n")
    table = tmp_path / lab / "dseg.tsv"
    table.write_text("index\tname\tcolor\n0\tBackground\t#000\n1\tliver\t#f00\n2\tspleen\t#0f0\n")
    assert readers.detect(tmp_path) == "bids"
    found = readers.read(tmp_path)
    end = ".nii.gz"
    assert (
        rows(found, tmp_path)
        == [
            ("01", "a", "t1", raw[0] + end, None, maps[0] + end, None),
            ("01", "a", "t1c", raw[1] + end, None, maps[0] + end, None),
            ("02", None, "flair", raw[2] + end, None, maps[1] + end, "test"),
            ("02", None, "pet", raw[3] + end, None, maps[2] + end, "test"),
        ]
        or rows(found, tmp_path)[0][2] == "t1c"
    )
    assert (found.name, found.cases[2].site) == ("Study", "Ulm")
    assert found.labels == Labels(classes={"liver": (1,), "spleen": (2,)})

    people.write_text("participant_id\tsplit\nsub-02\ttrian\n")
    with pytest.raises(CodedError, match=r"KUG-D08 .*split 'trian' \(did you mean"):
        readers.read(tmp_path)
    people.unlink()
    table.write_text("value\tname\n1\tx\n")
    with pytest.raises(CodedError, match=r"KUG-D08 .*expected columns index and name"):
        readers.read(tmp_path)
    put(tmp_path / "derivatives" / "other" / "sub-01" / "ses-a" / "sub-01_ses-a_dseg.nii.gz")
    with pytest.raises(CodedError, match=r"KUG-D13 .*label maps derivatives/"):
        readers.read(tmp_path)
    put(tmp_path / "sub-02" / "anat" / "sub-02_run-2_FLAIR.nii.gz")
    with pytest.raises(CodedError, match=r"KUG-D13 02 flair: found .*run-2"):
        readers.read(tmp_path)


def test_a_folder_that_no_reader_understands(tmp_path):
    for name in ("a.png", "b.png", "deep/deeper/c.dcm", "README", "x.tar.gz"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    with pytest.raises(CodedError) as caught:
        readers.read(tmp_path)
    text = str(caught.value)
    assert text.startswith("KUG-D01")
    for part in ("2 *.png", "1 *.dcm", "1 *.tar.gz", "1 without ending", "folders deep"):
        assert part in text
    for layout in ("BIDS", "MSD", "nnU-Net", "BraTS", "CSV"):
        assert layout in text


def test_sidecars_that_are_wrong(tmp_path):
    put(tmp_path / "a_t1.nii.gz")
    put(tmp_path / "a_seg.nii.gz")
    for data, message in (
        ({"version": 2}, "KUG-D08 .*version 2, expected 1"),
        ([], "KUG-D08 .*version list"),
        ({"version": 1, "casess": {}}, r"KUG-D08 .*did you mean 'cases'"),
        ({"version": 1, "cases": []}, "KUG-D08 .*cases: found list"),
        ({"version": 1, "cases": {"b.nii": {}}}, r"KUG-D01 .*1 files missing: b.nii"),
        ({"version": 1, "cases": {"a_t1.nii.gz": {"sites": 1}}}, r"KUG-D08 .*did you mean 'site'"),
    ):
        (tmp_path / "unigan.json").write_text(json.dumps(data))
        with pytest.raises(CodedError, match=message):
            readers.read(tmp_path)
    put(tmp_path / "b_t1.nii.gz")
    good = {"version": 1, "order": ["a_t1.nii.gz"], "cases": {"a_t1.nii.gz": {"site": "Ulm"}}}
    (tmp_path / "unigan.json").write_text(json.dumps(good))
    assert [(c.subject, c.site) for c in readers.read(tmp_path).cases] == [
        ("a", "Ulm"),
        ("b", None),
    ]
    table = tmp_path / "t.csv"
    table.write_text("subject,modality,image,label,channel\na,t1,a_t1.nii.gz,a_seg.nii.gz,one\n")
    with pytest.raises(CodedError, match=r"KUG-D08 .*line 2: found channel 'one'"):
        readers.read(table)
