"""Plain folders as people make them: names that mean much, folders side by side, real ones."""

import zipfile

import dicoms
import numpy as np
import pytest

from keras_unigan.config import Case
from keras_unigan.data import cases, nifti, readers, volumes
from keras_unigan.errors import CodedError


def put(folder, *names, array=None):
    """Writes tiny NIfTI files; without an array, of noise that is no label map."""
    for name in names:
        values = np.random.default_rng(len(name)).normal(size=(6, 5, 4)) if array is None else array
        nifti.write(folder / f"{name}.nii.gz", values.astype(np.float32), affine=np.eye(4))


def rows(found, folder):
    def short(name):
        return name and name.removeprefix(f"{folder}/").removesuffix(".nii.gz")

    return [(c.subject, c.visit, c.modality, short(c.image), short(c.label)) for c in found.cases]


LABEL = np.zeros((6, 5, 4))
LABEL[1:5, 1:4, 1:3] = 1


def test_visits_inside_the_folders_of_subjects(tmp_path):
    put(tmp_path, "p1/study1_FLAIR", "p1/study1_FLAIR_brainmask", "p1/study2_FLAIR")
    put(tmp_path, "p2/study1_FLAIR", "p2/study1_seg", "p3/ses-2/t1", "p3/ses-2/seg", "p4/p4_v2_t1")
    found = readers.read(tmp_path)
    assert rows(found, tmp_path) == [
        ("p1", "study1", "flair", "p1/study1_FLAIR", None),
        ("p1", "study2", "flair", "p1/study2_FLAIR", None),
        ("p2", "study1", "flair", "p2/study1_FLAIR", "p2/study1_seg"),
        ("p3", "ses-2", "t1", "p3/ses-2/t1", "p3/ses-2/seg"),
        ("p4", "v2", "t1", "p4/p4_v2_t1", None),
    ]
    # The mask of a brain is a label map only where there is no other.
    assert found.left == (str(tmp_path / "p1/study1_FLAIR_brainmask.nii.gz"),)
    for name in ("p2/study1_seg", "p3/ses-2/seg"):
        (tmp_path / f"{name}.nii.gz").unlink()
    found = readers.read(tmp_path)
    assert rows(found, tmp_path)[0][-1] == "p1/study1_FLAIR_brainmask"
    assert found.left == ()


def test_long_names_tell_the_modality_by_a_word(tmp_path):
    for subject in ("a", "b"):
        put(tmp_path, *(f"{subject}/{n}_N4_regtoFLAIR_regtoMNI" for n in ("T1POST", "FLAIR")))
        put(tmp_path, f"{subject}/GOLD_STANDARD_N4_regtoMNI")
    put(tmp_path, "c/c_fla_bet", "c/c_t1_bet", "c/c_seg", "c/c_t1_bet_x", "c/T2", "c/T2_seg")
    put(tmp_path, "c/seg_old_bet")
    (tmp_path / "c" / "seg_old_bet.nii.gz").unlink()
    found = readers.read(tmp_path)
    gold = "_STANDARD_N4_regtoMNI"
    assert rows(found, tmp_path) == [
        *(
            (s, None, n.lower(), f"{s}/{n}_N4_regtoFLAIR_regtoMNI", f"{s}/GOLD{gold}")
            for s in "ab"
            for n in ("FLAIR", "T1POST")
        ),
        ("c", None, "t2", "c/T2", "c/T2_seg"),
        ("c", None, "fla", "c/c_fla_bet", "c/c_seg"),
        ("c", None, "t1", "c/c_t1_bet", "c/c_seg"),
    ]
    assert found.left == (str(tmp_path / "c/c_t1_bet_x.nii.gz"),)


def test_files_made_of_others_and_the_name_of_label_maps(tmp_path):
    put(tmp_path, "s1_T1", "s2_T1")
    put(tmp_path, "s1_T1_tissue", "s2_T1_tissue", "s1_T1_bet", array=LABEL)
    put(tmp_path, "s1_T1_bet")
    text = (
        r"KUG-D02 .*2 images and no label map.* Fix: say which files they are: --label-name tissu"
    )
    with pytest.raises(CodedError, match=text):
        readers.read(tmp_path)
    found = readers.read(tmp_path, label_name="Tissue")
    assert rows(found, tmp_path) == [
        (s, None, "t1", f"{s}_T1", f"{s}_T1_tissue") for s in ("s1", "s2")
    ]
    assert found.left == (str(tmp_path / "s1_T1_bet.nii.gz"),)


def test_two_label_maps_of_one_image(tmp_path):
    put(tmp_path, "sub-a_ses-1_ct", "sub-a_ses-1_seg-vert_msk", "sub-a_ses-1_seg-part_msk")
    with pytest.raises(
        CodedError, match=r"KUG-D13 sub-a_ses-1: .*--label-name part or --label-name vert"
    ):
        readers.read(tmp_path)
    found = readers.read(tmp_path, label_name="vert")
    assert rows(found, tmp_path) == [
        ("sub-a", "ses-1", "ct", "sub-a_ses-1_ct", "sub-a_ses-1_seg-vert_msk")
    ]
    assert [p.rpartition("/")[2] for p in found.left] == ["sub-a_ses-1_seg-part_msk.nii.gz"]


def test_folders_around_subjects_give_the_split(tmp_path):
    put(tmp_path, "train/a/t1", "train/a/seg", "validation/b_t1", "validation/b_seg", "test/c_t1")
    found = readers.read(tmp_path)
    assert [(c.subject, c.split) for c in found.cases] == [
        ("c", "test"), ("a", "train"), ("b", "val")
    ]  # fmt: skip


def test_folders_however_deep(tmp_path):
    put(tmp_path, "ulm/mr/p1/baseline/t1", "ulm/mr/p1/baseline/seg", "a/b/c/d/p2/p2_t1", "p3_t1")
    put(tmp_path, ".trash/x/p4_t1")
    # A link back to the start does not go on for ever.
    (tmp_path / "a/b/again").symlink_to(tmp_path, target_is_directory=True)
    found = readers.read(tmp_path)
    assert rows(found, tmp_path) == [
        ("p2", None, "t1", "a/b/c/d/p2/p2_t1", None),
        ("p3", None, "t1", "p3_t1", None),
        ("p1", "baseline", "t1", "ulm/mr/p1/baseline/t1", "ulm/mr/p1/baseline/seg"),
    ]
    assert found.left == ()


def test_dicom_in_folders_and_archives(tmp_path):
    image = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
    dicoms.write_series(tmp_path / "p1" / "CT", image, np.eye(4))
    dicoms.write_series(tmp_path / "p2_ct", image, np.eye(4))
    for path in (tmp_path / "p2_ct").iterdir():
        path.rename(path.with_suffix(""))
    dicoms.save(tmp_path / "p3_xray.dcm", dicoms.dataset(image[:, :, 0]))
    dicoms.save(tmp_path / "DICOMDIR", dicoms.dataset(image[:, :, 0]))
    with zipfile.ZipFile(tmp_path / "p4_ct.zip", "w") as archive:
        for path in (tmp_path / "p1" / "CT").iterdir():
            archive.write(path, path.name)
    with zipfile.ZipFile(tmp_path / "old_ct.zip", "w") as archive:
        archive.writestr("notes.txt", "no scan")
    put(tmp_path, "p1/seg", "p2_seg", "p3_seg", "p4_seg", array=LABEL)
    found = readers.read(tmp_path)
    assert rows(found, tmp_path) == [
        ("p1", None, "ct", "p1/CT", "p1/seg"),
        ("p2", None, "ct", "p2_ct", "p2_seg"),
        ("p3", None, "xray", "p3_xray.dcm", "p3_seg"),
        ("p4", None, "ct", "p4_ct.zip", "p4_seg"),
    ]
    for case in found.cases[:2] + found.cases[3:]:
        np.testing.assert_array_equal(volumes.read(case.image).array, image)


def test_what_is_not_used_is_said(tmp_path):
    put(tmp_path, *(f"BraTS19_1/{n}" for n in ("BraTS19_1_t1", "BraTS19_1_seg", "brainmask")))
    assert readers.detect(tmp_path) == "brats"
    assert readers.read(tmp_path).left == (str(tmp_path / "BraTS19_1" / "brainmask.nii.gz"),)
    # Among more of other names, those of BraTS must not hide the others.
    put(tmp_path, "a_t1", "a_seg", "b_t1", "b_seg")
    assert readers.detect(tmp_path) == "folder"
    put(tmp_path / "x", "us_images/c", "us_labels/c", "us_gland/c")
    assert readers.read(tmp_path / "x").left == (str(tmp_path / "x" / "us_gland" / "c.nii.gz"),)


def test_images_beside_labels(tmp_path):
    put(tmp_path, *(f"my_t1_data/{k}/hip_{i}" for k in ("images", "labels") for i in (1, 2)))
    assert readers.detect(tmp_path / "my_t1_data") == "paired"
    found = readers.read(tmp_path / "my_t1_data")
    assert rows(found, tmp_path / "my_t1_data") == [
        (f"hip_{i}", None, "t1", f"images/hip_{i}", f"labels/hip_{i}") for i in (1, 2)
    ]
    (tmp_path / "my_t1_data").rename(tmp_path / "data")
    with pytest.raises(CodedError, match=r"KUG-T03 .*no modality in names such as hip_1"):
        readers.read(tmp_path / "data")
    found = readers.read(tmp_path / "data", modality="PD")
    assert {c.modality for c in found.cases} == {"pd"}
    put(tmp_path, "data/labels/hip_3")
    with pytest.raises(CodedError, match=r"KUG-D02 .*1 label maps without image: hip_3"):
        readers.read(tmp_path / "data", modality="pd")


def test_several_folders_of_images(tmp_path):
    put(tmp_path, *(f"{p}_{k}/c{i}" for p in ("us", "mr") for k in ("images", "gland", "labels")
                    for i in (0, 1)))  # fmt: skip
    found = readers.read(tmp_path, label_name="gland")
    assert rows(found, tmp_path) == [
        (f"c{i}", None, p, f"{p}_images/c{i}", f"{p}_gland/c{i}")
        for p in ("mr", "us")
        for i in (0, 1)
    ]
    put(tmp_path / "x", "train/images/a_ct", "train/masks/a_ct_mask", "test/images/b_ct")
    put(tmp_path / "x", "train/images/c_mr_0000", "train/masks/c_mr")
    found = readers.read(tmp_path / "x")
    assert [(c.subject, c.modality, c.split, c.label is None) for c in found.cases] == [
        ("b", "ct", "test", True), ("a", "ct", "train", False), ("c", "mr", "train", False)
    ]  # fmt: skip


def test_pictures_and_other_formats(tmp_path):
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "xray"
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
        for i in (1, 2):
            picture = np.arange(64, dtype=np.uint8).reshape(8, 8) // (1 if kind == "images" else 40)
            image.fromarray(picture).save(folder / kind / f"p{i}.png")
    study = cases.init_study(folder)
    assert [(c.subject, c.modality) for c in study.cases] == [("p1", "xray"), ("p2", "xray")]
    assert study.labels.classes == {"label_1": (1,)}
    # Beside scans, pictures are previews.
    put(folder, "images/p3")
    with pytest.raises(CodedError, match=r"KUG-D02 .*2 label maps without image"):
        readers.read(folder)


def test_names_are_for_folders_that_go_by_names(tmp_path):
    (tmp_path / "a.csv").write_text("subject,modality,image\n")
    with pytest.raises(CodedError, match=r"KUG-T02 --label-name and --modality: .*layout csv"):
        readers.read(tmp_path / "a.csv", label_name="x", modality="ct")
    put(tmp_path, "scan", "scan_seg")
    assert readers.read(tmp_path, modality="ct").cases == (
        Case("scan", "ct", str(tmp_path / "scan.nii.gz"), str(tmp_path / "scan_seg.nii.gz")),
    )


REAL = {
    "brain_ms_4mod_lit": (None, 8, 8, 2),
    "brain_ms_native_t1_t2_flair_lit": (None, 11, 11, 3),
    "brain_semireal_t1_t2_flair_ct": (None, 44, 44, 26),
    "brain_t1_ixi": ("tissue", 26, 26, 26),
    "brain_tumour_2d_4mod_brats2012": (None, 16, 16, 4),
    "brain_tumour_4mod_tcga": ("simple", 4, 4, 1),
    "brain_tumour_flair_t1c_brats2013": (None, 8, 8, 4),
    "hippocampus_t1_msd": (None, 30, 30, 30),
    "prostate_mr_us_deepreg": ("gland", 40, 40, 20),
    "vertebra_ct_mr_tptbox": ("subreg", 2, 2, 2),
}


@pytest.mark.parametrize("name", REAL)
def test_real_folders(name, unigan_data):
    """All that the folder's own table lists: as many images, label maps and subjects."""
    word, images, labelled, subjects = REAL[name]
    found = readers.read(unigan_data / name, label_name=word).cases
    assert len(found) == images
    assert sum(c.label is not None for c in found) == labelled
    assert len({c.subject for c in found}) == subjects
    listed = (unigan_data / "manifest.csv").read_text().splitlines()
    listed = {line.split(",")[3] for line in listed if line.startswith(f"{name},")}
    assert {c.image.removeprefix(f"{unigan_data}/") for c in found} == listed


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("brain_labelmaps_synthseg", "KUG-D02 .*look like label maps themselves"),
        ("brain_t1_ixi", "KUG-D02 .*--label-name DLMUSE or --label-name tissue"),
        ("brain_tumour_4mod_tcga", "KUG-D02 .*--label-name simple,"),
        ("vertebra_ct_mr_tptbox", "KUG-D13 .*--label-name subreg or --label-name vert"),
    ],
)
def test_real_folders_that_need_a_word(name, text, unigan_data):
    with pytest.raises(CodedError, match=text):
        readers.read(unigan_data / name)
