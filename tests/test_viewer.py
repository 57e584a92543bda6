"""The local viewer: what it serves and to whom, and a scan dropped on its page in a browser."""

import base64
import errno
import gzip
import io
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import zipfile

import browsers
import httpx
import nibabel
import numpy as np
import pytest
from commands import unigan
from PIL import Image

from keras_unigan import config, viewing
from keras_unigan.data import nifti, phantoms, volumes
from keras_unigan.errors import CodedError
from keras_unigan.viewing import app, gallery, opening

LABELS = config.Labels(classes={"organ": (3, 7), "lesion": (5,)})
AFFINE = np.array([[-1.5, 0.2, 0, 40], [0.2, 1.5, 0, -30], [0, 0, 4, 10], [0, 0, 0, 1]])


def make_plan():
    normalization = {
        "ct": config.Normalization("ct", mean=40.0, sd=50.0, low=-2.0, high=2.0),
        "t1": config.Normalization("mr", mean=0.0, sd=1.0, low=-1.5, high=2.5),
    }
    sizes = {"2d": config.Configuration((16, 16), 2, ((2, 2),), 4)}
    return config.Plan("study", ("ct", "t1"), LABELS, (1.5, 1.5, 4.0), None, normalization, sizes)


def scan_file(folder, name="scan.nii.gz", seed=3):
    image, label = phantoms.volume(seed, "ct", (32, 24, 8))
    path = folder / name
    nifti.write(path, image.astype(np.int16), affine=AFFINE)
    nifti.write(folder / f"label_{name}", np.array([0, 3, 5], np.uint8)[label], affine=AFFINE)
    return path


def by_threshold(source, modality, output, channel):
    """Segments as a perfect network of one threshold would."""
    volume = volumes.read(source)
    nifti.write(output, 3 * (volume.array > 60).astype(np.uint8), volume)


@pytest.fixture
def study(tmp_path):
    cases = []
    for number, split in enumerate(("train", "test", "test")):
        path = scan_file(tmp_path, f"s{number}.nii.gz", number)
        label = None if number == 2 else f"label_{path.name}"
        cases.append(config.Case(f"s{number}", "ct", path.name, label, split))
    config.Study("s", ("ct", "t1"), LABELS, tuple(cases)).save(tmp_path / "study.json")
    return tmp_path / "study.json"


@pytest.fixture
def model():
    return gallery.Model("toy", "run", make_plan(), by_threshold)


@pytest.fixture
def client(study, model):
    """A viewer of the test cases, asked as its page asks it."""
    with (
        viewing.Viewer(viewing.open_gallery([str(study)], model, split="test"), "t") as viewer,
        httpx.Client(base_url=viewer.origin, headers={app.TOKEN: viewer.token}) as asked,
    ):
        yield asked


def code(answer):
    return answer.status_code, answer.json()["code"]


def test_cases_of_a_study_their_scans_and_label_maps(client, study):
    told = client.get("/api/session").json()
    assert told["model"] == {"name": "toy", "kind": "run", "modalities": ["ct", "t1"]}
    assert [(s["name"], s["split"], s["label"]) for s in told["scans"]] == [
        ("s1_ct", "test", True),
        ("s2_ct", "test", False),
    ]
    assert {r["value"]: r["name"] for r in told["labels"]["label"]} == {
        3: "organ",
        5: "lesion",
        7: "organ",
    }
    for kind, name in (("image", "s1.nii.gz"), ("label", "label_s1.nii.gz")):
        answer = nibabel.Nifti1Image.from_bytes(client.get(f"/api/scans/0/{kind}.nii").content)
        truth = nibabel.load(study.parent / name)
        np.testing.assert_array_equal(answer.dataobj, truth.dataobj)
        np.testing.assert_allclose(answer.affine, truth.affine)
        # What makes NiiVue draw outlines.
        assert answer.header["intent_code"] == (1002 if kind == "label" else 0)
    assert code(client.get("/api/scans/1/label.nii")) == (400, "KUG-D02")
    assert code(client.get("/api/scans/9/image.nii")) == (400, "KUG-D01")


def test_a_prediction_is_made_once_a_modality(client, study):
    assert code(client.get("/api/scans/0/prediction.nii")) == (400, "KUG-D01")
    told = client.post("/api/scans/0/segment?modality=ct").json()
    mask = nibabel.load(study.parent / "s1.nii.gz").get_fdata() > 60
    voxel = abs(np.linalg.det(AFFINE)) / 1000
    assert told["made"]
    assert told["ml"] == {"organ": pytest.approx(mask.sum() * voxel, abs=1e-3), "lesion": 0.0}
    assert not client.post("/api/scans/0/segment?modality=ct").json()["made"]
    file = client.get("/api/scans/0/download?modality=ct")
    assert 'filename="s1_ct_seg.nii.gz"' in file.headers["content-disposition"]
    found = nibabel.Nifti1Image.from_bytes(gzip.decompress(file.content))
    np.testing.assert_array_equal(found.dataobj, 3 * mask)
    assert code(client.post("/api/scans/0/segment?modality=pet")) == (400, "KUG-T03")
    assert code(client.get("/api/scans/0/download")) == (400, "KUG-D01")  # modality not known


def test_dropped_files_of_any_kind_become_scans(client, tmp_path):
    path = scan_file(tmp_path)
    told = client.post("/api/scans", params={"name": "../x/mine.nii.gz"}, content=path.read_bytes())
    assert told.json() | {"number": 2, "name": "mine.nii.gz", "dropped": True} == told.json()
    answer = nibabel.Nifti1Image.from_bytes(client.get("/api/scans/2/image.nii").content)
    np.testing.assert_array_equal(answer.dataobj, nibabel.load(path).dataobj)
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8)).save(tmp_path / "x.png")
    answer = client.post("/api/scans?name=x.png", content=(tmp_path / "x.png").read_bytes())
    picture = client.get(f"/api/scans/{answer.json()['number']}/image.nii").content
    assert nibabel.Nifti1Image.from_bytes(picture).shape == (8, 6, 1)
    # Scans whose spacing is not known have no millilitres.
    told = client.post(f"/api/scans/{answer.json()['number']}/segment").json()
    assert told["ml"].keys() == {"organ", "lesion"}
    cut = client.post("/api/scans?name=cut.nii.gz", content=path.read_bytes()[:500])
    assert code(cut) == (400, "KUG-D07")
    assert cut.json()["text"].startswith("KUG-D07 cut.nii.gz: found a file of 500 bytes")
    assert code(client.post("/api/scans?name=y.nii", content=b"no")) == (400, "KUG-D07")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, "", "x"), "KUG-E04 x: found No space left on device"),
        (ConnectionError("gone"), "Bug: ConnectionError: gone."),
        (CodedError("KUG-S01", "server", "no answer", "one"), "KUG-S01 server: found no answer"),
    ],
)
def test_what_goes_wrong_in_the_model_is_told(tmp_path, error, text):
    def fail(source, modality, output, channel):
        raise error

    toy = gallery.Model("toy", "run", make_plan(), fail)
    with (
        viewing.Viewer(viewing.open_gallery([str(scan_file(tmp_path))], toy)) as viewer,
        httpx.Client(base_url=viewer.origin, headers={app.TOKEN: viewer.token}) as asked,
    ):
        answer = asked.post("/api/scans/0/segment")
    assert answer.status_code == 500
    assert answer.json()["text"].startswith(text)


def test_only_the_newest_dropped_files_are_kept_and_none_after_the_end(tmp_path):
    data = scan_file(tmp_path).read_bytes()
    shown = gallery.Gallery(model=gallery.Model("toy", "run", make_plan(), by_threshold))
    numbers = [shown.drop("a.nii.gz", data)]
    shown.predict(numbers[0], "ct")
    made = shown.prediction(numbers[0], "ct")
    numbers += [shown.drop("a.nii.gz", data) for _ in range(gallery.KEPT + 1)]
    assert not made.exists()
    kept = [pathlib.Path(shown[n].image) for n in numbers[2:]]
    assert all(path.is_file() for path in kept)
    with pytest.raises(CodedError, match=r"KUG-D01 scan 1: .*last 8 dropped"):
        shown[numbers[1]]
    shown.close()
    assert not any(path.exists() for path in kept)


def test_an_error_about_a_dropped_file_tells_no_folder(tmp_path):
    def refuse(source, modality, output, channel):
        raise CodedError("KUG-D12", source, "one value", "several", fix=f"look at {source}")

    shown = gallery.Gallery(model=gallery.Model("toy", "run", make_plan(), refuse))
    number = shown.drop("mine.nii.gz", scan_file(tmp_path).read_bytes())
    with pytest.raises(CodedError) as error:
        shown.predict(number)
    assert str(error.value) == (
        "KUG-D12 mine.nii.gz: found one value, expected several. Fix: look at mine.nii.gz"
    )
    shown.close()


def test_nobody_else_gets_a_scan(client):
    bare = httpx.Client(base_url=client.base_url)
    for headers in ({}, {app.TOKEN: "x"}, {app.TOKEN: "ü".encode("latin-1")}):
        assert code(bare.get("/api/scans/0/image.nii", headers=headers)) == (403, "KUG-S04")
    # The page itself is open, and holds nothing.
    page = bare.get("/")
    assert page.status_code == 200
    assert "s1_ct" not in page.text
    # Another name for this machine is DNS rebinding; another origin is another site's page.
    for headers in (
        {"host": "evil.example"},
        {"host": f"evil.example:{client.base_url.port}"},
        {"origin": "https://evil.example"},
        {"origin": "http://127.0.0.1:1"},
        {"origin": "null"},
    ):
        assert code(client.get("/api/session", headers=headers)) == (403, "KUG-S04")
    assert bare.get("/", headers={"host": "evil.example"}).status_code == 403
    for host in ("localhost", "127.0.0.1:99", "[::1]:80"):
        assert client.get("/api/session", headers={"host": host}).status_code == 200
    answer = client.get("/api/session")
    assert answer.headers["cache-control"] == "no-store"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert client.get("/files/../app.py").status_code == 404
    assert client.get("/files/report.html.j2").status_code == 404
    bare.close()


def test_files_that_are_too_large_are_refused(tmp_path):
    shown = gallery.Gallery()
    with (
        viewing.Viewer(shown, most_bytes=10_000) as viewer,
        httpx.Client(base_url=viewer.origin, headers={app.TOKEN: viewer.token}) as asked,
    ):
        assert asked.get("/api/session").json()["most_bytes"] == 10_000
        bomb = gzip.compress(bytes(10**6))
        assert len(bomb) < 10_000

        def endless():  # without a declared length
            for _ in range(20):
                yield bytes(1000)

        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("a.dcm", bytes(10**6))
        for content in (bytes(10_001), bomb, endless(), packed.getvalue()):
            answer = asked.post("/api/scans?name=big.nii.gz", content=content)
            assert code(answer) == (413, "KUG-S03")
        assert not shown.entries


def test_what_the_command_line_names(study, model, tmp_path):
    scan = str(tmp_path / "s0.nii.gz")
    label = str(tmp_path / "label_s0.nii.gz")
    one = viewing.open_gallery([scan], None, label, label)
    assert one[0] == gallery.Entry("s0.nii.gz", scan, label, label)
    assert [r["name"] for r in gallery.legend(one.labels)[:2]] == ["1", "2"]
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "s1_ct_seg.nii.gz").touch()
    some = viewing.open_gallery([str(study), "s1_ct", scan], None, None, str(tmp_path / "made"))
    assert [(e.name, e.prediction is not None) for e in some.entries.values()] == [
        ("s1_ct", True),
        ("s0.nii.gz", False),
    ]
    for sources, options, expected in (
        ([str(study), "s7_ct"], {}, r"KUG-D01 s7_ct: .*did you mean"),
        (["nothing.nii"], {}, "KUG-D01 nothing.nii"),
        ([str(study), str(study)], {}, "KUG-T02 .* a second study"),
        ([str(study)], {"label": label}, "KUG-T02 --label: found it with 3 scans"),
        ([scan], {"label": "no.nii"}, "KUG-D01 no.nii"),
        ([str(study)], {"split": "val"}, "KUG-D14 s: found no case in split 'val'"),
        ([str(tmp_path / "made")], {}, "KUG-D01"),
    ):
        if "made" in sources[0]:
            (tmp_path / "made" / "s1_ct_seg.nii.gz").unlink()
        with pytest.raises(CodedError, match=expected):
            viewing.open_gallery(sources, None, **options)
    for shown in (one, some):
        shown.close()


def test_what_counts_as_a_model_and_which_study_a_run_was_scored_on(study, tmp_path):
    for name in ("run/network.keras", "several/ensemble.json", "models/3/saved_model.pb"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    found = [tmp_path / name for name in ("run", "several", "models")]
    assert all(map(opening.is_model, found))
    assert [opening.needs_serving(f) for f in found] == [False, False, True]
    assert opening.is_model("host:8500/toy")
    assert not any(map(opening.is_model, (study, tmp_path, "models/3", "s0_ct")))
    assert opening.study_of_run(tmp_path / "run") is None
    entries = [{"command": "train", "inputs": {"shards": "x"}}]
    entries += [{"inputs": {"study": str(s)}} for s in (study, tmp_path / "gone.json")]
    config.write_json(tmp_path / "run" / "run.json", entries)
    assert opening.study_of_run(tmp_path / "run") == str(study)
    with (
        pytest.raises(CodedError, match=r"KUG-T04 .*no network.keras and no versions"),
        viewing.open_model(str(tmp_path / "made")),
    ):
        pass


def test_regions_have_the_colour_of_the_innermost():
    regions = config.Labels(regions={"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)})
    names = {row["value"]: row["name"] for row in gallery.legend(regions)}
    assert names == {1: "whole", 2: "core", 3: "enhancing"}
    assert len({row["colour"] for row in gallery.legend(regions)}) == 3


def test_label_maps_of_fractions_are_refused(tmp_path):
    path = scan_file(tmp_path)
    nifti.write(tmp_path / "soft.nii", np.full((32, 24, 8), 0.5, np.float32), affine=AFFINE)
    shown = viewing.open_gallery([str(path)], None, str(tmp_path / "soft.nii"))
    with pytest.raises(CodedError, match=r"KUG-D05 .*soft.nii"):
        shown.label(0)
    shown.close()


def test_command_line_refusals(tmp_path, capsys, monkeypatch):
    scan = scan_file(tmp_path)
    assert unigan("view", tmp_path / "nothing") == 3
    assert capsys.readouterr().err.startswith("KUG-D01")
    assert unigan("view", "127.0.0.1:1/a", "127.0.0.1:1/b", scan) == 2
    assert "a second model" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert unigan("view", scan, "--no-browser", "--port", taken.getsockname()[1]) == 4
    assert capsys.readouterr().err.startswith("KUG-S06")
    monkeypatch.setattr(app.importlib.metadata, "files", lambda _: None)
    assert unigan("view", scan, "--no-browser") == 4
    said = capsys.readouterr().err
    assert "ipyniivue" in said
    assert "keras-unigan[view]" in said


def test_command_line_says_where_the_page_is(tmp_path, capsys, monkeypatch):
    scan, opened = scan_file(tmp_path), []
    monkeypatch.setattr(viewing.Viewer, "wait", lambda self: opened.append(httpx.get(self.origin)))
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert unigan("view", scan, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["scans"] == 1
    assert opened[0] == told["url"]
    assert opened[1].status_code == 200
    assert unigan("view", scan, "--no-browser") == 0
    assert "not a medical device" in capsys.readouterr().out
    assert len(opened) == 3


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_viewer_that_is_ended_leaves_no_scan_behind(tmp_path, name):
    scan = scan_file(tmp_path)
    folder = tmp_path / "temporary"
    folder.mkdir()
    command = [sys.executable, "-m", "keras_unigan", "view", str(scan), "--no-browser", "--json"]
    environment = {**os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        lines = iter(process.stdout.readline, "}\n")
        url = next(line for line in lines if '"url"' in line).split('"')[3]
        origin, _, token = url.partition("/#")
        headers = {app.TOKEN: token}
        answer = httpx.post(
            f"{origin}/api/scans?name=a.nii.gz", content=scan.read_bytes(), headers=headers
        )
        assert answer.status_code == 200
        assert len(list(folder.glob("unigan_view_*/1/scan.nii.gz"))) == 1
        process.send_signal(getattr(signal, name))
        assert process.wait(60) == 0
    assert list(folder.glob("unigan_view_*")) == []


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with an untrained network."""
    import keras

    from keras_unigan.networks import UNet

    folder = tmp_path_factory.mktemp("viewer") / "run"
    folder.mkdir()
    keras.utils.set_random_seed(4)
    UNet(classes=3, filters=4, levels=2).save(folder / "network.keras")
    make_plan().save(folder / "plan.json")
    return folder


DROP = """async ([name, base64]) => {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name));
  for (const kind of ["dragenter", "dragover", "drop"])
    document.getElementById("drop").dispatchEvent(
      new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""


def drop(page, path):
    """Drops a file on the page and waits until it is shown."""
    page.evaluate(DROP, [path.name, base64.b64encode(path.read_bytes()).decode()])


def drawn(page):
    """Share of the canvas that is not black."""
    shot = page.locator("#view canvas").screenshot()
    return float((np.asarray(Image.open(io.BytesIO(shot)).convert("L")) > 30).mean())


def follow(page, scan, told="ct"):
    """Drops a scan, segments it and returns the bytes that a person downloads."""
    drop(page, scan)
    page.wait_for_selector(f"#status:text-is('{scan.name}')")
    page.select_option("#modality", told)
    page.focus("#segment")
    page.keyboard.press("Enter")
    page.wait_for_selector("#download:not([hidden])", timeout=120_000)
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == scan.name.replace(".nii.gz", "_seg.nii.gz")
    return pathlib.Path(download.value.path()).read_bytes()


def test_a_dropped_scan_is_drawn_segmented_and_downloaded(run, study, tmp_path):
    import keras_unigan

    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: extra [dev]")
    scan = scan_file(tmp_path, "dropped.nii.gz", seed=9)
    with (
        browsers.chromium() as browser,
        viewing.open_model(str(run)) as model,
        viewing.Viewer(viewing.open_gallery([str(study)], model, split="test"), "study") as viewer,
    ):
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(60_000)
        seen = browsers.Seen(page)
        page.goto(viewer.url)
        page.wait_for_selector("body[data-ready]")
        assert drawn(page) > 0.1
        assert "label" in page.inner_text("#place")
        data = follow(page, scan)
        found = nibabel.Nifti1Image.from_bytes(gzip.decompress(data))
        expected = keras_unigan.predict(run, nibabel.load(scan), modality="ct")
        np.testing.assert_array_equal(found.dataobj, expected.dataobj)
        np.testing.assert_array_equal(found.affine, expected.affine)
        assert len(np.unique(found.dataobj)) > 1
        # Planes move by keyboard, and the place is told as text.
        before = page.inner_text("#place")
        page.focus("#plane-2")
        page.keyboard.press("ArrowRight")
        playwright.expect(page.locator("#place")).not_to_have_text(before)
        assert "prediction" in page.inner_text("#place")
        # Without the layer the picture is another one.
        page.focus("#prediction-on")
        coloured = page.locator("#view canvas").screenshot()
        page.keyboard.press("Space")
        page.wait_for_timeout(300)
        assert page.locator("#view canvas").screenshot() != coloured
        assert seen.errors == []
        # Nothing comes from elsewhere.
        origins = (viewer.origin, "data:", f"blob:{viewer.origin}")
        assert [url for url in seen.requests if not url.startswith(origins)] == []
        # What cannot be read says so, with its code, and the page goes on.
        broken = tmp_path / "broken.nii.gz"
        broken.write_bytes(b"no scan")
        drop(page, broken)
        page.wait_for_selector("#error:not([hidden])")
        assert page.inner_text("#error").startswith("KUG-D07 broken.nii.gz: found")
        page.set_viewport_size({"width": 380, "height": 800})
        assert browsers.overflow(page) <= 0


@pytest.mark.slow
def test_an_exported_model_segments_what_is_dropped(run, tmp_path):
    import keras_unigan
    from keras_unigan import training
    from keras_unigan.serving import push

    network, plan = training.load_run(run)
    push.export_model(network, plan, tmp_path / "models" / "toy")
    scan = scan_file(tmp_path, "dropped.nii.gz", seed=9)
    with (
        browsers.chromium() as browser,
        viewing.open_model(str(tmp_path / "models" / "toy")) as model,
        viewing.Viewer(viewing.open_gallery([], model)) as viewer,
    ):
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.goto(viewer.url)
        page.wait_for_selector("body[data-ready]")
        found = nibabel.Nifti1Image.from_bytes(gzip.decompress(follow(page, scan)))
    expected = keras_unigan.predict(run, nibabel.load(scan), modality="ct")
    # Ties that float32 sums in another order may break.
    assert np.mean(np.asarray(found.dataobj) != np.asarray(expected.dataobj)) < 1e-3
    np.testing.assert_array_equal(found.affine, expected.affine)
