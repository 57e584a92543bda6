"""Readers, the study they make, and what they say when something is wrong."""

import os

import numpy as np
import pytest

from keras_unigan.config import Case, Labels, Study
from keras_unigan.data import cases, nifti, readers
from keras_unigan.data.readers import common
from keras_unigan.errors import CodedError


def put(path, values=(0, 1)):
    """Writes a tiny file; label maps hold `values`."""
    array = np.resize(np.array(values), (2, 2, 2)).astype(np.float32)
    nifti.write(path, array, affine=np.eye(4))


def names(found):
    return [(c.subject, c.modality, c.label and os.path.basename(c.label)) for c in found]


def test_flat_folder(tmp_path):
    for name in ("a_T1", "a_seg", "b_CT", "b_seg", "c_1_t1", "c_1_label"):
        put(tmp_path / f"{name}.nii.gz")
    put(tmp_path / "d_t1.nii")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden_t1.nii.gz").write_text("x")
    found = readers.folder.read(tmp_path).cases
    assert names(found) == [
        ("a", "t1", "a_seg.nii.gz"),
        ("b", "ct", "b_seg.nii.gz"),
        ("c_1", "t1", "c_1_label.nii.gz"),
        ("d", "t1", None),
    ]
    assert all(os.path.isabs(c.image) for c in found)


def test_folder_per_subject(tmp_path):
    for name in ("a/t1", "a/seg", "b/b_CT", "b/b_seg", "c/c_t1", "c/c_t1_seg", "c/c_t2", "c/c_seg"):
        put(tmp_path / f"{name}.nii.gz")
    assert names(readers.folder.read(tmp_path).cases) == [
        ("a", "t1", "seg.nii.gz"),
        ("b", "ct", "b_seg.nii.gz"),
        ("c", "t1", "c_t1_seg.nii.gz"),
        ("c", "t2", "c_seg.nii.gz"),
    ]


def test_table(tmp_path):
    for name in ("a", "b", "l"):
        put(tmp_path / f"{name}.nii.gz")
    table = tmp_path / "study.csv"
    table.write_text(
        "\ufeffSubject, modality,image,label,split,site,visit,age\n"
        f"s1,T1,a.nii.gz,l.nii.gz,Training,x,,50\ns2,ct,{tmp_path}/b.nii.gz,,validation,,2,60\n"
        "s3,ct,gs://bucket/c.nii.gz,,,,,\n",
        encoding="utf-8",
    )
    found = readers.table.read(table).cases
    assert names(found) == [("s1", "t1", "l.nii.gz"), ("s2", "ct", None), ("s3", "ct", None)]
    assert [c.split for c in found] == ["train", "val", None]
    assert (found[0].site, found[1].visit, found[2].image) == ("x", "2", "gs://bucket/c.nii.gz")
    assert found[0].image == str(tmp_path / "a.nii.gz")
    table.write_text(table.read_text().replace(",", ";"), encoding="utf-8")
    assert readers.table.read(table).cases == found


def test_detect(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    (tmp_path / "a.txt").write_text("x")
    assert readers.detect(tmp_path) == "folder"
    assert readers.detect(tmp_path / "a.csv") == "csv"
    assert set(readers.READERS) == {"folder", "csv", "bids", "msd", "nnunet", "brats", "paired"}
    with pytest.raises(CodedError, match=r"KUG-D01 .*a file that is no CSV"):
        readers.detect(tmp_path / "a.txt")
    with pytest.raises(CodedError, match=r"KUG-D01 .*b.csv: .*did you mean 'a.csv'"):
        readers.detect(tmp_path / "b.csv")


def test_init_study(tmp_path):
    for i in range(5):
        put(tmp_path / "data" / f"s{i}_t1.nii.gz")
        put(tmp_path / "data" / f"s{i}_seg.nii.gz", (0, 1, 3, 255))
    out = tmp_path / "deep" / "study.json"
    study = cases.init_study(tmp_path / "data", out)
    assert study.name == "data"
    assert study.modalities == ("t1",)
    assert study.labels == Labels(classes={"label_1": (1,), "label_3": (3,)})
    assert study.cases[0].image == "../data/s0_t1.nii.gz"
    assert sorted(c.split for c in study.cases) == ["test", "train", "train", "train", "val"]
    study.save(out)
    again = Study.load(out)
    assert again == study
    assert all(os.path.isfile(again.path(n)) for c in again.cases for n in (c.image, c.label))

    named = Labels(regions={"whole": (1, 3)})
    other = cases.init_study(
        tmp_path / "data", labels=named, name="x", reader="folder", fractions=(1, 0, 0)
    )
    assert (other.labels, other.name) == (named, "x")
    assert os.path.isabs(other.cases[0].image)
    assert {c.split for c in other.cases} == {"train"}
    with pytest.raises(CodedError, match=r"KUG-T02 reader: .*did you mean 'folder'"):
        cases.init_study(tmp_path / "data", reader="folders")


def test_relative_to_leaves_uris():
    study = Study("s", ("t1",), Labels(classes={"a": (1,)}), (Case("s", "t1", "gs://b/a.nii"),))
    assert cases.relative_to(study, "/x/study.json").cases == study.cases


def test_nothing_there(tmp_path):
    with pytest.raises(CodedError, match=r"KUG-D01 .*no image among 0 files \(0 label maps\)"):
        readers.folder.read(tmp_path)
    (tmp_path / "readme.txt").write_text("x")
    put(tmp_path / "a_seg.nii.gz")
    with pytest.raises(CodedError, match=r"KUG-D01 .*no image among 2 files \(1 label maps\)"):
        readers.folder.read(tmp_path)
    put(tmp_path / "scan.nii.gz")
    with pytest.raises(CodedError, match=r"KUG-D01 .*a name without an underscore"):
        readers.folder.read(tmp_path)


def test_labels_and_images_that_do_not_meet(tmp_path):
    put(tmp_path / "patient1_t1.nii.gz")
    with pytest.raises(CodedError, match=r"KUG-D02 .*1 images and no label map"):
        readers.folder.read(tmp_path)
    put(tmp_path / "pateint1_seg.nii.gz")
    text = r"KUG-D02 .*1 label maps without image: pateint1_seg.nii.gz \(perhaps of patient1_t1"
    with pytest.raises(CodedError, match=text):
        readers.folder.read(tmp_path)


def test_one_case_in_two_files(tmp_path):
    for name in ("x/a_t1", "y/a_t1", "x/a_seg"):
        put(tmp_path / f"{name}.nii.gz")
    with pytest.raises(CodedError, match=r"KUG-D13 a t1: found .*x/a_t1.* and .*y/a_t1"):
        readers.folder.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"KUG-D08 .*columns \[\]"),
        ("subject,modality,picture\na,b,c\n", "KUG-D08 .*expected a column 'image'"),
        ("subject,modality,image\n", "KUG-D01 .*a table without rows"),
        ("subject,modality,image\na,,c\n", "KUG-D08 .* line 2: found no modality"),
        ("subject,modality,image,split\na,b,c,trian\n", r"split 'trian' \(did you mean 'train'"),
        ("subject,modality,image\na,b,c.nii\n", "KUG-D02 .*1 images and no label map"),
    ],
)
def test_bad_tables(text, message, tmp_path):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(CodedError, match=message):
        readers.table.read(tmp_path / "t.csv")


def test_table_that_is_no_text(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(CodedError, match=r"KUG-D07 .*no UTF-8 text"):
        readers.table.read(tmp_path / "t.csv")


def test_missing_files_and_repeated_images(tmp_path):
    put(tmp_path / "a.nii.gz")
    table = tmp_path / "t.csv"
    rows = "subject,modality,image,label\ns1,t1,a.nii.gz,a.nii.gz\ns2,t1,{},\n"
    table.write_text(rows.format("a.nii"))
    with pytest.raises(CodedError, match=r"KUG-D01 s2_t1: found 1 files missing: .*did you mean"):
        cases.init_study(table)
    table.write_text(rows.format("a.nii.gz"))
    with pytest.raises(CodedError, match=r"KUG-D13 study: found 1 images in more than one case"):
        cases.init_study(table)
    table.write_text("subject,modality,image,label\ns,t1,a.nii.gz,a.nii.gz\ns,T1,b.nii.gz,\n")
    with pytest.raises(CodedError, match=r"KUG-D13 s_t1: found the case twice"):
        cases.init_study(table)


def test_label_files_that_hold_no_classes(tmp_path):
    put(tmp_path / "a_t1.nii.gz")
    put(tmp_path / "a_seg.nii.gz", (0, 0.5, 300))
    with pytest.raises(CodedError, match=r"KUG-D05 .*a_seg.nii.gz: found values 0, 0.5, 300"):
        cases.init_study(tmp_path)
    put(tmp_path / "a_seg.nii.gz", (0, 255))
    with pytest.raises(CodedError, match=r"KUG-D05 labels: .*write 1 in place of 255"):
        cases.init_study(tmp_path)
    remote = [Case("s", "t1", "a.nii", label="gs://b/l.nii")]
    with pytest.raises(CodedError, match=r"KUG-D08 gs://b/l.nii: found a label map at a URI"):
        cases.scan_labels(remote)


def test_many_names_are_cut():
    assert common.listed(range(12)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"


def test_real_folder(unigan_data):
    study = cases.init_study(unigan_data / "brain_semireal_t1_t2_flair_ct" / "unpaired_train")
    assert study.modalities == ("ct", "flair", "t1", "t2")
    assert len(study.cases) == 20
    assert study.labels.values == ((0,), *((v,) for v in range(1, 8)))
