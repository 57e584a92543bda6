import base64
import dataclasses
import html.parser
import io
import json
import struct

import browsers
import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest
from commands import unigan

from keras_unigan import aggregation, comparison, config, evaluation, overlays, report
from keras_unigan.data import nifti, phantoms
from keras_unigan.errors import CodedError
from keras_unigan.report import pictures, sections

NAMES = ("organ", "lesion")


class Page(html.parser.HTMLParser):
    """Images, addresses, text, embedded data and balance of a page."""

    def __init__(self, text):
        super().__init__()
        self.images, self.addresses, self.text, self.open = [], [], [], []
        self.figures, self.scripts, self.places = [], [], set()
        self.feed(text)
        self.data = json.loads(self.scripts[0])

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.addresses += [attributes[k] for k in ("src", "href", "action") if k in attributes]
        if tag == "img":
            self.images.append(attributes)
        if tag == "figure":
            self.figures.append(attributes)
        self.places.add(attributes.get("id"))
        if tag not in ("img", "meta", "input", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            self.scripts += [data] if self.open[-1] == "script" else []
        else:
            self.text.append(data)

    def words(self):
        return " ".join(" ".join(self.text).split())


def read(path):
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    pictures_and_places = ("data:image/png;base64,", "#")
    assert all(address.startswith(pictures_and_places) for address in page.addresses)
    assert {a[1:] for a in page.addresses if a.startswith("#")} <= page.places
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
    rows, chosen = [], []
    for i, modality in enumerate(("ct", "t1")):
        scored = scored_case(f"<b>s{i}</b>", modality, i)
        rows += scored.rows
        evaluation.save_overlay(run / "samples" / f"known-{i:04d}.npz", scored)
        overlay = {"case": scored.case.id, "modality": modality, "rank": "only"}
        chosen.append({**overlay, "dice": 0.5, "file": f"samples/known-{i:04d}.npz"})
    nan = float("nan")
    failed = {"case": "s9_t1", "status": "KUG-D06", "message": "KUG-D06 s9_t1: NaN"}
    scores = {"dice": 0.0, "nsd": 0.0, "hd95": 40.0, "assd": 40.0, "seconds": nan}
    rows += [{**rows[-1], **scores, **failed, "name": n} for n in NAMES]
    summary = {"split": "test", "known_modality": known, **evaluation.summarize(rows)}
    config.write_json(run / name, config.finite({**summary, "overlays": chosen, "rows": rows}))
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
    # Nothing to compare with, and nobody asked for a check.
    assert words.count("Not in this run folder") == 2
    # No address is loaded, and no folder of this machine is told.
    assert "http" not in text
    assert str(tmp_path) not in text
    # A case's name is text, never markup.
    assert "<b>s0</b>_ct" in words
    assert "<b>" not in text.replace("<li><b>", "")
    assert "</script>" not in page.scripts[0]
    assert page.data["cases"]["rows"][0][0] == "<b>s0</b>_ct"


def test_curves_and_slices_are_pictures(full_run):
    run, _ = full_run
    page = read(report.write(run))
    curves = [i["alt"] for i in page.images if i.get("class") == "curve"]
    assert curves[-2:] == [
        "Validation Dice of the averaged weights",
        "Terms of the game, one panel each",
    ]
    assert curves[0].startswith("Bland–Altman")
    for image in page.images:
        assert min(png_size(image["src"])) > 50
    assert [f["data-case"] for f in page.figures] == ["<b>s0</b>_ct", "<b>s1</b>_t1"]
    for overlay in page.data["overlays"]:
        assert overlay["colours"] == list(pictures.COLOURS[:2])
        assert [p["plane"] for p in overlay["planes"]] == ["axial", "coronal", "sagittal"]
        # 32 x 24 x 8 voxels of 1.0 x 1.5 x 3.0 mm.
        sizes = [(p["width"], p["height"], p["aspect"]) for p in overlay["planes"]]
        assert sizes == [(32, 24, 1.5), (32, 8, 3.0), (24, 8, 2.0)]
        for plane in overlay["planes"]:
            strip = plane["width"], plane["height"] * len(plane["slices"])
            assert png_size(plane["masks"]) == strip
            assert decoded(plane["scan"]).shape[:2] == strip[::-1]
    with np.load(run / "samples" / "known-0000.npz") as areas:
        middle = areas["coronal_truth"].any(1).sum((1, 2)).argmax()
        shown = page.data["overlays"][0]["planes"][1]
        assert (shown["middle"], shown["slices"]) == (middle, areas["coronal_slices"].tolist())


def decoded(address):
    kind = address.split(";")[0].rpartition("/")[2]
    data = base64.b64decode(address.partition(",")[2])
    return matplotlib.image.imread(io.BytesIO(data), format=kind)


def test_embedded_slices_lie_as_the_volume_does(tmp_path):
    scored = scored_case("s", "ct", shift=2)
    evaluation.save_overlay(tmp_path / "x.npz", scored)
    with np.load(tmp_path / "x.npz") as arrays:
        found = pictures._planes(arrays, {})
    low, high = overlays._ends(scored.image.array)
    axes = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
    for plane in found["planes"]:
        order = axes[plane["plane"]]
        masks = np.rint(decoded(plane["masks"]) * 255).astype(int)
        for channel, truth in ((0, scored.truth), (1, scored.prediction)):
            painted = np.where(truth[1], 2, np.where(truth[0], 1, 0)).transpose(order)
            for row, place in enumerate(plane["slices"]):
                strip = masks[row * plane["height"] : (row + 1) * plane["height"], :, channel]
                # Columns run with the first axis, rows against the second: up is up.
                np.testing.assert_array_equal(strip, painted[..., place].T[::-1])
        grey = decoded(plane["scan"])[..., 0] * 255
        image = scored.image.array.transpose(order)[..., plane["slices"]]
        image = np.concatenate([image[..., k].T[::-1] for k in range(image.shape[2])])
        expected = 255 * np.clip((image - low) / (high - low), 0, 1)
        np.testing.assert_allclose(grey, expected, atol=1.001)


def test_large_slices_are_thinned_out_and_pictures_have_one_plane(tmp_path):
    scored = scored_case("s", "ct")
    wide = [np.repeat(a, 10, axis=-3) for a in (scored.image.array, scored.truth)]
    image = nifti.Volume(wide[0], scored.image.affine)
    large = dataclasses.replace(scored, image=image, truth=wide[1], prediction=wide[1])
    flat = dataclasses.replace(
        scored,
        image=nifti.Volume(scored.image.array[:, :, :1], scored.image.affine),
        truth=scored.truth[..., :1],
        prediction=scored.prediction[..., :1],
    )
    shown = []
    for number, each in enumerate((large, flat)):
        evaluation.save_overlay(tmp_path / f"{number}.npz", each)
        with np.load(tmp_path / f"{number}.npz") as arrays:
            shown.append(pictures._planes(arrays, {})["planes"])
    assert [p["width"] for p in shown[0]] == [160, 160, 24]
    # Thinned out alike along both sides, so that the shape stays.
    assert [p["height"] for p in shown[0]] == [12, 4, 8]
    assert [(p["plane"], p["slices"]) for p in shown[1]] == [("axial", [0])]


def test_missing_parts_are_named(tmp_path):
    run = tmp_path / "run"
    make_plan().save(run / "plan.json")
    words = read(report.write(run)).words()
    for part in ("metrics.json", "history.csv", "config.json", "run.json", "fingerprint.json"):
        assert part in words
    assert words.count("Not in this run folder") == 12
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
    row |= {"failed": 1, "edge_nmi": 1.5, "shift_mm": 0.625, "copy_ratio": 0.0625}
    pair = {"target": "t1", "method": "unigan", "made_cases": 4, "real_cases": 5}
    for n, key in enumerate(("frechet", "kernel"), 1):
        pair |= {key: n / 1, f"{key}_low": n / 2, f"{key}_high": None}
    near = {"target": "t1", "method": "unigan", "cases": 4, "copies": 1}
    near |= {"distance": 0.25, "usual": 0.5}
    kept_back = {**found, "known_modality": False, "cases": 5, "failed": 1, "features": "in-house"}
    kept_back |= {"distances": [pair], "memorisation": [near], "table": [row], "macro": {}}
    config.write_json(run / "translation_unknown.json", kept_back)
    page = read(report.write(run))
    assert "ct t1 unigan 4 1.500 0.625 0.062" in page.words()
    assert "t1 unigan 4 5 1.000 (0.500 to –) 2.000 (1.000 to –)" in page.words()
    assert "t1 unigan 4 1 0.250 0.500" in page.words()
    assert "1 of 5 cases could not be used and are in no mean" in page.words()
    assert "modality of the scan unknown" in page.words()
    (run / "translation_unknown.json").unlink()
    page = read(report.write(run))
    assert "modality of the scan unknown" not in page.words()
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


def test_agreement_of_volumes_is_what_bland_and_altman_define():
    def row(case, true, predicted, **other):
        return {
            "case": case,
            "modality": "ct",
            "name": "organ",
            "status": "ok",
            "volume_true_ml": true,
            "volume_pred_ml": predicted,
            **other,
        }

    rows = [row("a", 10.0, 12.0), row("b", 20.0, 21.0), row("c", 30.0, 30.0), row("d", 5.0, 0.0)]
    rows[3]["status"] = "missed"
    rows += [row("e", None, None, status="KUG-D07"), row("f", 0.0, 0.0, status="undefined")]
    rows += [row("g", 0.0, 3.0, status="unannotated"), row("h", None, None)]
    (found,) = sections.agreement(rows)
    differences = np.array([2.0, 1.0, 0.0, -5.0])
    assert (found["n"], found["left_out"]) == (4, 4)
    assert found["bias"] == pytest.approx(differences.mean())
    assert found["sd"] == pytest.approx(differences.std(ddof=1))
    assert found["high"] == pytest.approx(differences.mean() + 1.96 * differences.std(ddof=1))
    assert found["points"][0] == (11.0, 2.0)
    assert pictures.bland_altman([found]).startswith("data:image/png")
    assert pictures.bland_altman(sections.agreement(rows[4:])) == ""


def test_the_run_stands_beside_others(full_run, tmp_path):
    run, _ = full_run
    other = tmp_path / "runs" / "b"
    write_scores(other)
    result = comparison.compare([comparison.read_system(str(p)) for p in (run, other)], ("nsd",))
    config.write_json(tmp_path / "x.json", config.finite(result))
    page = read(report.write(run, compare=[str(other), str(tmp_path / "x.json")]))
    words = page.words()
    assert "Dice: a against b, modality told" in words
    assert "HD95 (mm): a against b, modality told" in words
    assert "NSD: a against b, modality told" in words
    assert "t1 organ 2 0" in words
    assert "do not take the lack of a small p for equality" in words
    assert "Not in this run folder: a comparison" not in words
    differences = [i for i in page.images if i["alt"].startswith("Difference of Dice")]
    assert len(differences) == 1


def test_what_a_comparison_can_be_made_of(full_run, tmp_path):
    run, _ = full_run
    assert sections.comparisons(run, []) == []
    other = tmp_path / "runs" / "b"
    write_scores(other)
    for given in (str(other), str(other / "metrics.json"), f"m={other / 'metrics.json'}"):
        (found,) = sections.comparisons(run, [given])
        name = "m" if given.startswith("m=") else "b"
        assert {(t["a"], t["b"]) for t in found["tables"]} == {("a", name)}
    # Where `unigan compare -o` may have left it.
    result = comparison.compare([comparison.read_system(str(p)) for p in (run, other)], ("nsd",))
    config.write_json(run / "comparison.json", config.finite(result))
    assert {t["score"] for t in sections.comparisons(run, [])[0]["tables"]} == {"NSD"}
    with pytest.raises(CodedError, match=r"KUG-D08 .*shards.json: found no comparison"):
        sections.comparisons(run, [str(tmp_path / "shards" / "shards.json")])
    with pytest.raises(CodedError, match=r"KUG-T04 .*no scores"):
        sections.comparisons(run, [str(tmp_path / "shards")])


def test_warnings_name_what_lessens_the_scores(full_run, tmp_path, capsys):
    run, _ = full_run
    words = read(report.write(run)).words()
    assert "1 of 3 cases could not be used and count as the worst" in words
    assert "Fewer than 10 cases behind a mean: ct organ (1), ct lesion (1), t1 organ (2)" in words
    shards = tmp_path / "shards"
    letters = [{"case": f"s{i}", "code": "KUG-D07", "message": "x"} for i in range(12)]
    (shards / "dead_letters.jsonl").write_text("\n".join(map(json.dumps, letters)))
    fact = {"cases": 12, "mean": 1.0, "sd": 1.0, "low": 0.0, "high": 1.0, "voxels": {"organ": 0}}
    facts = {"modalities": {"ct": fact, "t1": {**fact, "cases": 2, "voxels": {"organ": 9}}}}
    config.write_json(shards / "fingerprint.json", facts)
    found = {"findings": [{"level": "error", "code": "KUG-D06", "case": "s1", "message": "NaN"}]}
    config.write_json(
        tmp_path / "check.json", {**found, "levels": {"error": 1}, "counts": {"KUG-D06": 1}}
    )
    scores = config.read_json(run / "metrics.json")
    raised = {"threshold": 3.0, "raised": ["s1_ct", "s3_t1"]}
    more = {"labelled": 9, "split": "val", "alarm": raised}
    config.write_json(run / "metrics.json", {**scores, **more})
    assert unigan("report", run, "--check", tmp_path / "check.json") == 0
    words = read(run / "report.html").words()
    for text in (
        "12 scans could not be prepared (12 KUG-D07).",
        "No voxel of organ in the training scans of ct.",
        "Modalities are unbalanced in the training scans: ct 12, t1 2.",
        "Only the first 3 of 9 cases were scored.",
        "2 of 3 cases are unlike those of training (KUG-D38), and count like the others: s1_ct, "
        "s3_t1.",
        "These are scores of the val split, which the training has seen.",
        "unigan check found 1 errors in the scans.",
        "unigan check: findings 1 (1 KUG-D06) error: KUG-D06 s1: NaN",
        "… (dead_letters.jsonl lists all)",
    ):
        assert text in words
    assert unigan("report", run, "--check", run / "config.json") == 3
    assert "KUG-D08" in capsys.readouterr().err


def test_anatomy_of_translations_is_told_per_name(full_run):
    run, _ = full_run
    scores = dict.fromkeys(("mae", "psnr", "ssim", "nmi"), None)
    scores |= {"anatomy_dice": 0.5, "label_dice": None, "hallucination": 0.25}
    table = {"source": "ct", "target": "t1", "method": "unigan", "n": 2, "paired": 0, **scores}
    kept = {"anatomy_dice": 0.5, "label_dice": None, "hallucination": 0.25}
    row = {"case": "a", "source": "ct", "target": "t1", "method": "unigan", "status": "ok"}
    rows = [{**row, "names": {"organ": kept}}, {**row, "names": {}}]
    rows.append({**row, "names": {"organ": {**kept, "anatomy_dice": 1.0, "hallucination": None}}})
    found = {"split": "test", "known_modality": True, "segmentor": None, "table": [table]}
    config.write_json(run / "translation.json", {**found, "macro": {}, "rows": rows})
    assert "ct t1 unigan organ 2 0.750 2 – 0 0.250 1" in read(report.write(run)).words()


def test_what_was_measured_or_learned_after_the_training_stands_in_the_page(full_run):
    run, _ = full_run
    words = read(report.write(run)).words()
    assert "Alignment of modalities" not in words
    assert "learned on validation" not in words
    scores = config.read_json(run / "metrics.json")
    method = {"runs": ["a", "b"], "tta": "mirror", "postprocessing": [{"kind": "keep largest"}]}
    config.write_json(run / "metrics.json", {**scores, "method": method})
    config.write_json(run / "postprocessing.json", {"steps": [{"name": "organ", "least": 12}]})
    found = {"probe": {"accuracy": 0.75}, "pca": {"points": [[0, 1]]}, "x": list(range(99))}
    config.write_json(run / "alignment.json", found)
    words = read(report.write(run)).words()
    assert "Predicted by a, b; views of each window: mirror; post-processing: 1 steps." in words
    assert "Post-processing, learned on validation cases steps name organ least 12" in words
    assert "probe accuracy 0.75 x 99 items" in words
    assert "points" not in words


def many_cases(run, cases=500):
    """Scores of many cases of four names and two modalities, without scans."""
    generator, rows = np.random.default_rng(3), []
    for number in range(cases):
        head = {"case": f"case{number:04d}", "subject": f"s{number}", "split": "test"}
        head |= {"modality": ("ct", "t1")[number % 2], "known_modality": True}
        for name in ("liver", "kidney", "spleen", "lesion"):
            dice, true = generator.uniform(0.5, 1), generator.uniform(10, 90)
            row = dict.fromkeys(aggregation.COLUMNS) | head
            row |= {
                s: dice if d > 0 else 9 * (1 - dice) for s, (_, d) in aggregation.SCORES.items()
            }
            row |= {"name": name, "unit": "mm", "n_true": 9, "n_pred": 9, "status": "ok"}
            row |= {"volume_true_ml": true, "volume_pred_ml": true * dice, "seconds": 0.1}
            rows.append({**row, "message": ""})
    summary = {"split": "test", "known_modality": True, **aggregation.summarize(rows)}
    run.mkdir(parents=True, exist_ok=True)
    config.write_json(
        run / "metrics.json", config.finite({**summary, "overlays": [], "rows": rows})
    )
    return rows


def test_five_hundred_cases_make_a_small_page(tmp_path):
    rows = many_cases(tmp_path)
    path = report.write(tmp_path)
    # Half a megabyte: a few hundred bytes a case.
    assert path.stat().st_size < 1e6
    found = read(path).data["cases"]
    assert len(found["rows"]) == len(rows) == 2000
    assert [key for key, _ in found["columns"]][:4] == ["case", "modality", "name", "status"]


def test_the_page_works_in_a_browser(full_run, tmp_path):
    run, _ = full_run
    many_cases(tmp_path / "many")
    content = config.read_json(tmp_path / "many" / "metrics.json")
    chosen = config.read_json(run / "metrics.json")["overlays"]
    config.write_json(run / "metrics.json", {**content, "overlays": chosen})
    (run / "metrics_unknown.json").unlink()
    other = tmp_path / "b"
    config.write_json(other / "metrics.json", content)
    path = report.write(run, compare=[str(other)])
    with browsers.chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        seen = browsers.Seen(page)
        page.goto(path.as_uri())
        assert page.locator("canvas[data-drawn]").count() == 0
        box = page.locator("#case-table")
        assert box.locator("tbody tr").count() == 25
        assert "2000 of 2000 rows, page 1 of 80" in box.inner_text()
        # Sorting, filters and pages by keyboard alone.
        dice = box.get_by_role("button", name="Dice")
        for key, order in (("Enter", "ascending"), ("Space", "descending")):
            dice.press(key)
            column = box.locator("th[aria-sort]")
            assert (column.get_attribute("aria-sort"), column.inner_text()[:4]) == (order, "Dice")
        shown = box.locator("tbody tr td:nth-child(5)").all_inner_texts()
        expected = sorted((r["dice"] for r in content["rows"]), reverse=True)[:25]
        assert [float(x) for x in shown] == pytest.approx(expected, rel=1e-3)
        box.get_by_role("searchbox").press_sequentially("case0007 liv")
        assert "1 of 2000 rows" in box.inner_text()
        box.get_by_role("searchbox").fill("")
        box.get_by_label("modality").select_option("t1")
        box.get_by_role("button", name="Next rows").press("Enter")
        assert "1000 of 2000 rows, page 2 of 40" in box.inner_text()
        # Slices are drawn when one comes near them, and the slider moves them.
        page.locator("#overlays").scroll_into_view_if_needed()
        first = page.locator("figure").first
        first.locator("canvas[data-drawn]").nth(2).wait_for()
        canvas, slider = first.locator("canvas").first, first.locator("input").first
        before, drawn = canvas.screenshot(), canvas.get_attribute("data-drawn")
        slider.focus()
        page.keyboard.press("ArrowRight")
        assert canvas.get_attribute("data-drawn") == str(int(drawn) + 1)
        page.keyboard.press("ArrowLeft")
        assert canvas.screenshot(caret="initial") == before
        page.locator("#show-truth").press("Space")
        assert canvas.screenshot(caret="initial") != before
        # The first thing that the keyboard meets leads past the rest.
        page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
        page.reload()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        assert seen.errors == []
        assert {u.split(":")[0] for u in seen.requests} <= {"file", "data"}
        assert len({u for u in seen.requests if u.startswith("file")}) == 1
        for width in (1280, 380):
            page.set_viewport_size({"width": width, "height": 800})
            assert browsers.overflow(page) <= 0


def test_many_pixels_are_packed_with_little_loss():
    generator = np.random.default_rng(0)
    smooth = np.cumsum(generator.integers(0, 3, (8, 200, 180)), axis=1).astype(np.uint8)
    arrays = {
        "image": smooth,
        "truth": np.zeros((8, 1, 200, 180), bool),
        "prediction": smooth[:, None] > 99,
        "slices": np.arange(8),
        "middle": np.array(3),
        "spacing": np.ones(3),
        "names": np.array(["organ"]),
    }
    (plane,) = pictures._planes(arrays, {"organ": "#123456"})["planes"]
    assert plane["scan"].startswith("data:image/jpeg")
    found = decoded(plane["scan"])[..., 0].astype(int)
    expected = np.concatenate([s.T[::-1] for s in smooth])
    assert abs(found - expected).mean() < 3
    assert len(plane["scan"]) < smooth.size / 2
    masks = np.rint(decoded(plane["masks"]) * 255)[..., 1]
    np.testing.assert_array_equal(masks, expected > 99)
