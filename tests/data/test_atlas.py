"""Label maps by an atlas of the labelled subjects: where it holds, where it does not, and marks."""

import dataclasses
import json

import nibabel as nib
import numpy as np
import pytest

from keras_unigan import cli
from keras_unigan.config import Case, Labels, Study, TrainOptions
from keras_unigan.data import atlas, datasets, nifti, splits
from keras_unigan.errors import CodedError
from keras_unigan.pipelines import preprocess

LABELS = Labels(classes={"core": (2,), "shell": (1,), "spot": (7,)})
# Brightness of body, core, shell and spot; what is dark in one is bright in the other.
SHOWN = {"ct": (100, 300, 500, 700), "t1": (700, 500, 300, 100)}


def ellipsoid(shape, centre, radii):
    grid = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    return sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)) < 1


@pytest.fixture(scope="module", autouse=True)
def _coarse():
    """A coarser atlas than by default, which does for such scans."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atlas, "GRID", (32, 32, 32))
        yield


def subject(rng, anywhere=False):
    """Truth and body of a subject: a core in a shell in a body, and a spot somewhere in the shell.

    Its body has its own size and place in the scan.
    """
    shape = tuple(int(n) for n in rng.integers((46, 50, 28), (56, 60, 34)))
    centre = np.array(shape) / 2 + rng.uniform(-2, 2, 3)
    radii = np.array(shape) * rng.uniform(0.38, 0.44, 3)
    body = ellipsoid(shape, centre, radii)
    inner = centre + (rng.uniform(-0.5, 0.5, 3) * radii if anywhere else 0)
    size = 0.5 if anywhere else 1.0
    truth = np.where(ellipsoid(shape, inner, radii * 0.5 * size), 1, 0)
    truth[ellipsoid(shape, inner, radii * 0.3 * size)] = 2
    place = centre + rng.uniform(-0.4, 0.4, 3) * radii
    truth[ellipsoid(shape, place, np.full(3, 2.5))] = 7
    return truth * body, body


def scan(rng, truth, body, modality, noise):
    """How a modality shows a subject, each scan with a gain of its own."""
    levels = SHOWN[modality]
    shown = np.choose(np.where(truth == 7, 3, truth), (levels[0], levels[2], levels[1], levels[3]))
    noisy = shown + rng.normal(0, noise, truth.shape)
    return np.where(body, np.clip(noisy, 5, None) * rng.uniform(0.7, 1.4), 0).astype(np.float32)


def write_study(folder, anywhere=False, labelled=3):
    """Labelled T1s and two unlabelled CTs, stored in another orientation; test cases of both."""
    rng, cases, truths = np.random.default_rng(0), [], {}
    plan = [("t1", "train", True)] * labelled + [("ct", "train", False)] * 2
    plan += [("t1", "val", True), ("ct", "val", False), ("ct", "test", True)]
    for number, (modality, split, known) in enumerate(plan):
        truth, body = subject(rng, anywhere)
        image = scan(rng, truth, body, modality, 2000 if anywhere else 25)
        affine = np.diag([-2.0, 2.0, 3.0, 1.0]) if modality == "ct" else np.diag([2.0, 2.0, 3.0, 1])
        paths = [folder / f"s{number}_{what}.nii.gz" for what in ("image", "label")]
        nib.save(nib.Nifti1Image(image, affine), paths[0])
        if known:
            nib.save(nib.Nifti1Image(truth.astype(np.uint8), affine), paths[1])
        label = str(paths[1]) if known else None
        cases.append(Case(f"s{number}", modality, str(paths[0]), label, split))
        truths[cases[-1].id] = truth
    study = Study("cores", ("ct", "t1"), LABELS, tuple(cases))
    study.save(folder / "study.json")
    return study, truths


def shares_of(study, case, scan):
    return atlas.memberships(atlas.read_truth(study, case, scan), scan, len(LABELS.values))


def dice(first, second):
    return 2 * np.count_nonzero(first & second) / (first.sum() + second.sum())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Study before and after, the report, and the truth of every case."""
    folder = tmp_path_factory.mktemp("atlas")
    study, truths = write_study(folder)
    after, report = atlas.prelabel(study, folder / "made")
    return study, after, report, truths


def test_labels_another_modality_in_which_all_brightness_is_turned_over(made):
    study, after, report, truths = made
    assert report["prelabelled"] == ["s3_ct", "s4_ct"]
    assert report["failed"] == {}
    for case in after.cases:
        if case.id in report["prelabelled"]:
            array = nifti.read(case.label).array
            asked = array != 255
            assert 0.7 < asked.mean() < 1
            for value in (1, 2):
                assert dice((array == value) & asked, (truths[case.id] == value) & asked) > 0.7
            # By brightness alone the two would be turned over: the image says so.
            image = nifti.read(case.image).array
            assert image[array == 2].mean() < image[array == 1].mean()
    before = nifti.read(study.cases[0].image).array
    truth = truths["s0_t1"]
    assert before[truth == 2].mean() > before[truth == 1].mean()


def test_leaves_out_what_lies_anywhere_and_says_how_well_it_found_the_rest(made):
    _, after, report, _ = made
    assert report["annotated"] == ["core", "shell"]
    assert report["dice"]["spot"] < atlas.LEAST_DICE
    assert min(report["dice"][name] for name in report["annotated"]) > 0.8
    assert {c.annotated for c in after.cases if c.prelabelled} == {("core", "shell")}


def test_grid_and_mark_of_the_file_and_all_other_cases_stay(made):
    study, after, report, _ = made
    for old, new in zip(study.cases, after.cases, strict=True):
        if new.id not in report["prelabelled"]:
            assert new == old
            continue
        label, image = nifti.read(new.label), nifti.read(new.image)
        np.testing.assert_array_equal(label.affine, image.affine)
        assert label.affine[0, 0] < 0
        assert bytes(label.header["descrip"]).decode().startswith(atlas.MARK)
        assert new.prelabelled
        assert new.split == "train"


def test_the_check_is_the_dice_of_scans_that_the_atlas_was_not_made_of(made):
    study, _, report, _ = made
    known, each = study.cases[:3], []
    scans = [atlas.read_scan(study, case) for case in known]
    shares = [shares_of(study, *pair) for pair in zip(known, scans, strict=True)]
    for place, (case, scan) in enumerate(zip(known, scans, strict=True)):
        others = [share for other, share in enumerate(shares) if other != place]
        prior = atlas.prior_of(np.mean(others, axis=0))
        np.testing.assert_allclose(prior.sum(axis=0), 1, rtol=1e-6)
        likely = atlas.histograms(prior, [scan.coarse])
        np.testing.assert_allclose(likely.sum(axis=1), 1)
        found = atlas.label(prior, likely, scan)
        truth = np.asarray(nib.load(case.label).dataobj)
        each.append(dice(found == 1, (truth == 2) & (found != 255)))
    assert report["dice"]["core"] == pytest.approx(np.mean(each), abs=1e-3)
    assert min(each) > 0.8
    alone = atlas.check(study, known[:1], shares[0])
    assert np.isnan(list(alone.values())).all()


def test_a_higher_confidence_labels_less_and_better(made):
    study, _, _, truths = made
    known = study.cases[:3]
    scans = [atlas.read_scan(study, case) for case in known]
    shares = [shares_of(study, *pair) for pair in zip(known, scans, strict=True)]
    prior = atlas.prior_of(np.mean(shares, axis=0))
    case = study.cases[3]
    seen = atlas.read_scan(study, case)
    likely = atlas.histograms(prior, [seen.coarse])
    truth = truths[case.id][::-1]  # in RAS+
    index = np.choose(np.where(truth == 7, 3, truth), (0, 2, 1, 3))
    left, right = [], []
    for confidence in (0.0, 0.6, 0.95):
        found = atlas.label(prior, likely, seen, confidence)
        left.append((found == 255).mean())
        right.append((found == index)[found != 255].mean())
    assert left[0] == 0 < left[1] < left[2]
    assert right[0] < right[1] < right[2]


def test_anatomy_that_lies_anywhere_is_refused(tmp_path):
    study, _ = write_study(tmp_path, anywhere=True)
    with pytest.raises(CodedError, match="KUG-D39 cores: found an atlas that finds no name in"):
        atlas.prelabel(study, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_needs_labelled_and_unlabelled_training_scans(tmp_path):
    study, _ = write_study(tmp_path)
    for kept, missing in ((True, "unlabelled"), (False, "fully labelled")):
        cases = tuple(c for c in study.cases if bool(c.label) == kept or c.split != "train")
        part = dataclasses.replace(study, cases=cases)
        with pytest.raises(CodedError, match=f"KUG-D14 cores: found no {missing} training case"):
            atlas.prelabel(part, tmp_path / "made")


def test_says_why_no_labelled_scan_could_be_read(tmp_path):
    study, _ = write_study(tmp_path)
    for number in range(3):
        (tmp_path / f"s{number}_image.nii.gz").unlink()
    with pytest.raises(
        CodedError, match=r"KUG-D14 .*can be read \(KUG-D01 .*s0_image.*no such file"
    ):
        atlas.prelabel(study, tmp_path / "made")


def test_command_writes_a_study_that_prepares_and_names_what_it_could_not_read(tmp_path, capsys):
    write_study(tmp_path)
    (tmp_path / "s4_image.nii.gz").write_bytes(b"no scan")
    arguments = ["prelabel", str(tmp_path / "study.json"), "-o", str(tmp_path / "made"), "--json"]
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 3
    result = json.loads(capsys.readouterr().out)
    assert result["prelabelled"] == ["s3_ct"]
    assert list(result["failed"]) == ["s4_ct"]
    after = Study.load(tmp_path / "made" / "study.json")
    own = next(c for c in after.cases if c.prelabelled)
    assert own.label == "labels/s3_ct.nii.gz"
    assert own.image == "../s3_image.nii.gz"
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "KUG-E02" in capsys.readouterr().err

    kept = tuple(c for c in after.cases if c.subject != "s4")
    dataclasses.replace(after, cases=kept).save(tmp_path / "made" / "study.json")
    shards = tmp_path / "shards"
    preprocess.run(["--study", str(tmp_path / "made" / "study.json"), "--output", str(shards)])
    options = TrainOptions(patch_size=(16, 16), batch_size=2)
    train, *_ = datasets.load(shards, options=options)
    assert next(iter(train))["image"].shape == (2, 16, 16, 1)
    with pytest.raises(CodedError, match="KUG-D39 s3_ct: found a label map made by an atlas among"):
        datasets.load(shards, options=dataclasses.replace(options, folds=2))


def test_labels_of_an_atlas_are_no_truth(made):
    _, after, *_ = made
    own = next(c for c in after.cases if c.prelabelled)
    with pytest.raises(
        CodedError, match="KUG-D39 s3_ct: found a label map made by an atlas in val"
    ):
        dataclasses.replace(own, split="val")
    with pytest.raises(CodedError, match=r"KUG-D39 s3_ct: .* in a study that is to be split"):
        splits.assign(after, splits.Scheme())
