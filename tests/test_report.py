import base64
import dataclasses
import html.parser
import io
import json
import struct

import matplotlib.figure
import numpy as np
import pytest

from keras_unigan import config, evaluation, report
from keras_unigan.data import nifti, phantoms
from keras_unigan.errors import CodedError

NAMES = ("organ", "lesion")


class Page(html.parser.HTMLParser):
    """Images, addresses, text and balance of a page."""

    def __init__(self, text):
        super().__init__()
        self.images, self.addresses, self.text, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.addresses += [attributes[k] for k in ("src", "href", "action") if k in attributes]
        if tag == "img":
            self.images.append(attributes)
        if tag not in ("img", "meta", "input", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def words(self):
        return " ".join(" ".join(self.text).split())


def read(path):
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    return page


def png_size(address):
    data = base64.b64decode(address.partition(",")[2])
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def scored_case(subject, modality, shift=0, spacing=(1.0, 1.5, 3.0)):
    image, label_map = phantoms.volume(3, modality, (32, 24, 8))
    truth = np.stack([label_map == 1, label_map == 2])
    prediction = np.roll(truth, shift, axis=1)
    case = config.Case(subject, modality, f"{subject}.nii.gz", f"{subject}_seg.nii.gz", "test")
    common = {
        "case": case.id,
        "subject": subject,
        "modality": modality,
        "split": "test",
        "known_modality": True,
    }
    rows = evaluation.score_masks(truth, prediction, NAMES, spacing)
    rows = [{**common, **row, "message": "", "seconds": 0.5} for row in rows]
    volume = nifti.Volume(image, np.diag([*spacing, 1.0]))
    return evaluation.ScoredCase(case, rows, volume, truth, prediction)


def write_scores(run, name="metrics.json", known=True):
    rows, overlays = [], []
    for i, modality in enumerate(("ct", "t1")):
        scored = scored_case(f"<b>s{i}</b>", modality, i)
        rows += scored.rows
        evaluation.save_overlay(run / "samples" / f"known-{i:04d}.npz", scored)
        overlay = {"case": scored.case.id, "modality": modality, "rank": "only"}
        overlays.append({**overlay, "dice": 0.5, "file": f"samples/known-{i:04d}.npz"})
    nan = float("nan")
    failed = {"case": "s9_t1", "status": "KUG-D06", "message": "KUG-D06 s9_t1: NaN"}
    scores = {"dice": 0.0, "nsd": 0.0, "hd95": 40.0, "assd": 40.0, "seconds": nan}
    rows += [{**rows[-1], **scores, **failed, "name": n} for n in NAMES]
    summary = {"split": "test", "known_modality": known, **evaluation.summarize(rows)}
    config.write_json(run / name, config.finite({**summary, "overlays": overlays, "rows": rows}))
    return summary


def make_plan():
    window = config.Normalization("ct", mean=100.0, sd=100.0, low=-1.0, high=1.0)
    return config.Plan(
        "liver study",
        ("ct",),
        config.Labels(classes={"organ": (1,), "lesion": (2,)}),
        (1.0, 1.0, 3.0),
        None,
        {"ct": window},
        {"2d": config.Configuration((8, 8), 2, ((2, 2),), 4)},
        reasons={"spacing": "Median of 12 scans."},
    )


@pytest.fixture
def full_run(tmp_path):
    run, shards = tmp_path / "runs" / "a", tmp_path / "shards"
    summary = write_scores(run)
    write_scores(run, "metrics_unknown.json", known=False)
    make_plan().save(run / "plan.json")
    config.Experiment(str(shards), str(run), "segan", steps=8).save(run / "config.json")
    entry = {"command": "train", "versions": {"keras": "3.15"}, "config": {"home": str(tmp_path)}}
    config.write_json(run / "run.json", [entry])
    (run / "history.csv").write_text(
        "epoch,step,seconds,loss,skipped,val_loss,val_dice,val_dice_ct,val_dice_loss\n"
        "1,4,30,0.9,0,0.8,0.41,0.41,0.5\n2,8,90,0.6,1,0.7,0.73,,0.4\n3,12,120,0.5,0,,,,\n"
    )
    fact = config.ModalityFingerprint(
        12, ((9, 9, 9),), ((1.0, 1.0, 3.0),), 91.5, 20.0, 5.0, 180.0, -2.0, 3.0, {"organ": 12345}
    )
    config.Fingerprint({"ct": fact}).save(shards / "fingerprint.json")
    config.write_json(shards / "shards.json", {"splits": {"train": {"ct": 7}, "test": {"ct": 2}}})
    return run, summary


def test_page_of_a_whole_run_holds_every_part_and_loads_nothing(full_run, tmp_path):
    run, summary = full_run
    path = report.write(run)
    assert path == run / "report.html"
    page, text = read(path), path.read_text()
    words = page.words()
    assert "not a medical device" in words
    assert f"{summary['macro_dice']:.3f} macro Dice, test split, modality known" in words
    assert "macro Dice, test split, modality unknown" in words
    row = summary["table"][2]
    # The case that could not be used is in the means: two values, so there is a deviation.
    assert row["n"] == 2
    means = f"{row['dice_mean']:.3f} {row['dice_sd']:.3f} {row['nsd_mean']:.3f}"
    assert f"t1 organ 2 0 0 0 1 {means} {row['hd95_mean']:.2f}" in words
    assert "all macro 3 cases 0 1" in words
    assert "KUG-D06 s9_t1: NaN" in words
    assert "0.730 best validation Dice, epoch 2 of 3" in words
    assert "2.0 min training, 12 steps" in words
    assert "a loss or gradient was not finite: 1." in words
    assert "spacing 1.0, 1.0, 3.0 nearest_axis –" in words
    assert "Median of 12 scans." in words
    assert "12,345" in words
    assert "train ct 7 test ct 2" in words
    assert "Neuroinformatics 2018" in words
    assert "3.15" in words
    assert "Not in this run folder" not in words
    # No address is loaded, and no folder of this machine is told.
    assert "http" not in text
    assert str(tmp_path) not in text
    # A case's name is text, never markup.
    assert "<b>s0</b>_ct" in words
    assert "<b>" not in text.replace("<li><b>", "")


def test_curves_and_slices_are_pictures(full_run):
    run, _ = full_run
    page = read(report.write(run))
    curves = [i for i in page.images if i.get("class") == "curve"]
    assert [i["alt"] for i in curves] == [
        "Validation Dice of the averaged weights",
        "Terms of the game, one panel each",
    ]
    slices = [i for i in page.images if i not in curves]
    shown = [i for i in slices if "hidden" not in i]
    assert len(shown) == 2
    assert len(slices) > 6
    for image in page.images:
        assert min(png_size(image["src"])) > 50
    # 32 x 24 voxels of 1.0 x 1.5 mm: 32 mm wide, 36 mm high, two panels.
    width, height = png_size(shown[0]["src"])
    assert width / 2 / height == pytest.approx(32 / 36, rel=0.01)
    areas = np.load(run / "samples" / "known-0000.npz")
    middle = areas["truth"].any(1).sum((1, 2)).argmax()
    assert shown[0]["alt"].endswith(f"slice {areas['slices'][middle]}")


def test_contours_lie_on_the_masks():
    mask = np.zeros((40, 40), bool)
    mask[10:20, 0:15] = True
    arrays = {
        "image": np.zeros((1, 40, 40), np.uint8),
        "truth": mask[None, None],
        "prediction": np.zeros((1, 1, 40, 40), bool),
        "slices": np.array([5]),
        "middle": np.array(5),
        "spacing": np.array([1.0, 1.0, 1.0]),
        "names": np.array(["organ"]),
    }
    import matplotlib.image

    source = report._slices(arrays, ["organ"])["pictures"][0]["src"]
    picture = matplotlib.image.imread(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    picture = picture[::-1, :, :3]  # row 0 at the bottom, as y
    height, width = picture.shape[:2]
    coloured = np.argwhere(np.ptp(picture, axis=-1) > 0.3) / [height / 40, width / 80]
    # The left panel is the bare scan; the outline runs around x 10..20, y 0..15 of the right one.
    assert coloured[:, 1].min() == pytest.approx(40 + 10, abs=0.5)
    assert coloured[:, 1].max() == pytest.approx(40 + 20, abs=0.5)
    assert coloured[:, 0].max() == pytest.approx(15, abs=0.5)


def test_missing_parts_are_named(tmp_path):
    run = tmp_path / "run"
    make_plan().save(run / "plan.json")
    words = read(report.write(run)).words()
    for part in ("metrics.json", "history.csv", "config.json", "run.json", "fingerprint.json"):
        assert part in words
    assert words.count("Not in this run folder") == 9
    assert "unigan evaluate RUN study.json" in words

    other = tmp_path / "scores"
    write_scores(other)
    for file in (other / "samples").iterdir():
        file.unlink()
    words = read(report.write(other)).words()
    assert "slices of scored cases" in words
    assert "plan.json" in words


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(CodedError, match=r"KUG-T04 .*neither plan.json nor metrics.json"):
        report.write(tmp_path)


def test_subjects_of_each_split_come_from_the_study(full_run):
    run, _ = full_run
    cases = [
        dataclasses.replace(scored_case(f"p{i}", "ct").case, split=split)
        for i, split in enumerate(config.SPLITS)
    ]
    study = config.Study("s", ("ct",), make_plan().labels, tuple(cases))
    words = read(report.write(run, study)).words()
    assert "test: subjects 1 p2" in words
    study.save(run / "study.json")
    assert "train: subjects 1 p0" in read(report.write(run, run / "study.json")).words()


def test_numbers_that_are_undefined_are_dashes(tmp_path):
    write_scores(tmp_path)
    saved = json.loads((tmp_path / "metrics.json").read_text())
    saved["macro_dice"] = None
    config.write_json(tmp_path / "metrics.json", saved)
    assert "– macro Dice, test split" in read(report.write(tmp_path)).words()


def test_health_of_the_last_epoch_stands_in_the_page(full_run):
    run, _ = full_run
    assert "OK at the last epoch" in read(report.write(run)).words()
    (run / "history.csv").write_text(
        "epoch,step,loss,skipped,diversity,copy_ratio\n"
        "1,4,0.9,0,0.1,nan\n2,8,0.6,1,0.0001,0.5\n3,12,nan,4,0.0001,0.001\n"
    )
    words = read(report.write(run)).words()
    assert "FAIL health of the training: non-finite" in words
    assert "FAIL non-finite 2 skipped 4 of 4 steps had a loss" in words
    assert "Try first: lower the rate" in words
    assert "WATCH identity copy 3 copy_ratio" in words
    assert "WATCH collapse 2 diversity" in words


def test_translations_stand_in_the_page_of_a_run_that_makes_them(full_run):
    run, _ = full_run
    assert "Synthetic images" not in read(report.write(run)).words()
    scores = {"mae": 0.125, "psnr": 21.5, "ssim": 0.75, "nmi": 1.25}
    scores |= {"anatomy_dice": 0.5, "label_dice": None, "hallucination": 0.25}
    row = {"source": "ct", "target": "t1", "method": "unigan", "n": 4, "paired": 3, **scores}
    found = {"split": "test", "known_modality": True, "segmentor": "a", "table": [row]}
    config.write_json(run / "translation.json", {**found, "macro": {"copy": scores}})
    page = read(report.write(run))
    numbers = "0.125 21.5 0.750 1.250 0.500 – 0.250"
    assert f"ct t1 unigan 4 3 {numbers}" in page.words()
    assert f"all macro copy {numbers}" in page.words()
    assert "segmentor: run a" in page.words()
    assert "a picture of translations" in page.words()
    (run / "translation.json").unlink()
    figure = matplotlib.figure.Figure(figsize=(2, 1))
    figure.savefig(run / "translations.png")
    page = read(report.write(run))
    assert "scores of translations" in page.words()
    shown = next(i for i in page.images if i["alt"].startswith("One validation slice"))
    assert png_size(shown["src"]) == (200, 100)


def test_names_that_were_not_annotated_have_a_column(tmp_path):
    run = tmp_path / "run"
    write_scores(run)
    assert "<th>not annotated</th>" not in report.write(run).read_text()
    content = config.read_json(run / "metrics.json")
    rows = content["rows"]
    rows[1] |= dict.fromkeys((*evaluation.SCORES, "n_true", "unit")) | {"status": "unannotated"}
    content |= evaluation.summarize([r | {"seconds": 1.0} for r in rows])
    config.write_json(run / "metrics.json", config.finite(content))
    page = report.write(run).read_text()
    assert page.count("<th>not annotated</th>") == 1
    assert "<td>lesion</td><td>0</td><td>0</td><td>1</td>" in page
