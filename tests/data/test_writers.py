"""Every layout gives the same study back, with the same images."""

import csv
import dataclasses
import gzip
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from keras_unigan import cli
from keras_unigan.config import Case, Labels, Study
from keras_unigan.data import cases, nifti, phantoms, readers, writers
from keras_unigan.data.readers import sidecar
from keras_unigan.errors import CodedError


def place(folder, layout):
    return folder / ("out.csv" if layout == "csv" else f"out_{layout}")


def facts(study):
    """All that a study says but where its files lie."""
    scheme = [(n, study.labels.file_values(n)) for n in study.labels.foreground]
    rows = [
        (c.subject, c.modality, c.split, c.site, c.visit, c.label is None, c.annotated)
        for c in study.cases
    ]
    head = study.name, study.modalities, study.labels.overlapping, study.normalization
    return head, scheme, rows


def assert_same(first, second):
    """Same facts, voxels with their types, affines, and codes of the headers."""
    assert facts(first) == facts(second)
    for a, b in zip(first.cases, second.cases, strict=True):
        files = [(a.image, a.channel, b.image, b.channel), (a.label, None, b.label, None)]
        for name, channel, other, other_channel in files:
            if name is None:
                continue
            old = nifti.read(first.path(name), channel)
            new = nifti.read(second.path(other), other_channel)
            assert old.array.dtype == new.array.dtype
            np.testing.assert_array_equal(old.array, new.array)
            np.testing.assert_array_equal(old.affine, new.affine)
            for key in ("qform_code", "sform_code", "xyzt_units"):
                assert old.header[key] == new.header[key]


def unpacked(path):
    data = Path(path).read_bytes()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    return phantoms.write_study(folder, ("ct", "t1"), subjects_per_modality=3, size=16, depth=6)


@pytest.fixture(scope="module")
def paired(tmp_path_factory):
    """Two visits, shared and own label maps, sites, splits, no label, regions, odd names."""
    folder = tmp_path_factory.mktemp("paired")
    rng = np.random.default_rng(0)
    affine = nib.affines.from_matvec(np.diag([-1.0, 1.5, 2.0]), [3, 4, 5])

    def put(name, shape=(5, 6, 4), dtype=np.int16, grid=affine):
        nifti.write(folder / name, rng.integers(0, 3, shape).astype(dtype), affine=grid)
        return name

    label = put("l1.nii", dtype=np.uint8)
    other = [put("l2.nii.gz", dtype=np.uint8), put("l3.nii.gz", (5, 6, 1), np.uint8)]
    found = [
        Case("b é/1", "t1", put("1.nii.gz"), label, "train", "Ulm", "1"),
        Case("b é/1", "flair", put("2.nii"), label, "train", "Ulm", "1"),
        Case("b é/1", "t1", put("3.nii.gz", dtype=np.float32), other[0], "train", "Bonn", "2"),
        Case("b-1", "seg", put("4.nii.gz", (5, 6, 1)), other[1], "test", annotated=("whole",)),
        Case("b-1", "t1w", put("5.nii.gz", grid=2 * affine), None, "test", "n/a"),
        Case("B_1", "t1_post", put("6.nii.gz"), None, "val"),
        Case("B_1", "t1post", put("7.nii.gz"), None, "val"),
        Case("a", "t1c", put("8.nii.gz"), None, None),
    ]
    modalities = ("seg", "t1", "t1w", "t1c", "flair", "t1_post", "t1post", "never")
    labels = Labels(regions={"whole": (1, 2), "core": (2,)})
    schemes = {"never": "ultrasound", "t1c": "mr"}
    return Study("Odd\tnames", modalities, labels, tuple(found), str(folder), schemes)


@pytest.mark.parametrize("layout", writers.WRITERS)
def test_phantoms_come_back(phantom, layout, tmp_path):
    out = place(tmp_path, layout)
    writers.convert(phantom, layout, out)
    again = cases.read_study(out)
    assert_same(phantom, again)
    assert readers.detect(out) == layout
    for old, new in zip(phantom.cases, again.cases, strict=True):
        assert unpacked(phantom.path(old.image)) == unpacked(new.image)
    # `unigan init` gives the same study too: subjects keep their splits.
    study = cases.init_study(out, tmp_path / "study.json")
    assert facts(study) == facts(phantom)


@pytest.mark.parametrize("layout", writers.WRITERS)
def test_odd_studies_come_back_through_every_layout(paired, layout, tmp_path):
    writers.convert(paired, layout, place(tmp_path, layout))
    first = cases.read_study(place(tmp_path, layout))
    assert_same(paired, first)
    second = writers_chain(first, layout, tmp_path / "next")
    assert_same(paired, second)


def writers_chain(study, layout, folder):
    following = list(writers.WRITERS)[list(writers.WRITERS).index(layout) - 1]
    writers.convert(study, following, place(folder, following))
    return cases.read_study(place(folder, following))


def test_merged_classes_and_names_that_layouts_reserve(phantom, tmp_path):
    labels = Labels(classes={"ignore": (2,), "Background": (1, 4)})
    study = dataclasses.replace(phantom, labels=labels)
    for layout in writers.WRITERS:
        writers.convert(study, layout, place(tmp_path, layout))
        assert facts(cases.read_study(place(tmp_path, layout))) == facts(study)


def test_what_a_layout_can_say_is_not_in_the_sidecar(tmp_path):
    """A study as the Decathlon has it: the sidecar holds no case."""
    for i in range(3):
        for name in ("t1", "t2", "seg"):
            array = np.full((3, 4, 5), i, np.uint8)
            nifti.write(tmp_path / "in" / f"s{i}_{name}.nii.gz", array, affine=np.eye(4))
    labels = Labels(classes={"one": (1,), "two": (2,)})
    study = cases.read_study(tmp_path / "in", labels, "plain")
    for layout in ("msd", "nnunet"):
        assert writers.convert(study, layout, place(tmp_path, layout)) == []
        said = json.loads((place(tmp_path, layout) / sidecar.NAME).read_text())
        assert said == {"version": 1, "layout": layout}
    assert common_shape(tmp_path / "out_msd" / "imagesTr" / "s1.nii.gz") == (3, 4, 5, 2)
    writers.convert(cases.read_study(place(tmp_path, "msd")), "bids", tmp_path / "b")
    said = json.loads((tmp_path / "b" / sidecar.NAME).read_text())
    assert said == {"version": 1, "layout": "bids", "modalities": ["t1", "t2"]}
    table = (tmp_path / "b" / "derivatives" / "labels" / "dseg.tsv").read_text()
    assert table == "index\tname\n0\tbackground\n1\tone\n2\ttwo\n"


def common_shape(path):
    return nib.load(path).shape


def test_scaled_channels_keep_their_bytes(tmp_path):
    """int16 with a slope: no rounding on the way out of a 4-D file and back into one."""
    array = np.arange(48, dtype=np.int16).reshape(2, 3, 4, 2)
    image = nib.Nifti1Image(array, np.diag([1, 2, 3, 1]))
    image.header.set_slope_inter(0.1, -7)
    (tmp_path / "in").mkdir()
    raw = image.header.copy()
    raw["vox_offset"], raw["magic"] = 352, b"n+1"
    data = raw.binaryblock + b"\0\0\0\0" + array.tobytes(order="F")
    (tmp_path / "in" / "a.nii").write_bytes(data)
    nifti.write(tmp_path / "in" / "l.nii", array[..., 0] % 2, affine=image.affine)
    pair = [Case("a", m, "a.nii", "l.nii", channel=i) for i, m in enumerate(("t1", "t2"))]
    labels = Labels(classes={"x": (1,)})
    study = Study("s", ("t1", "t2"), labels, tuple(pair), str(tmp_path / "in"))
    writers.convert(study, "bids", tmp_path / "b")
    split = cases.read_study(tmp_path / "b")
    assert_same(study, split)
    assert [c.channel for c in split.cases] == [None, None]
    writers.convert(split, "msd", tmp_path / "m")
    whole = cases.read_study(tmp_path / "m")
    assert_same(study, whole)
    assert [c.channel for c in whole.cases] == [0, 1]
    assert unpacked(whole.cases[0].image)[352:] == data[352:]
    writers.convert(study, "csv", tmp_path / "t.csv")
    assert list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))[1]["channel"] == "1"
    assert_same(study, cases.read_study(tmp_path / "t.csv"))


def test_what_was_annotated_in_a_table(phantom, tmp_path):
    """A column where some case has it; the sidecar has what a cell cannot hold."""
    first, second, *rest = phantom.cases
    first = dataclasses.replace(first, annotated=("lesion", "organ"))
    second = dataclasses.replace(second, annotated=("organ",))
    study = dataclasses.replace(phantom, cases=(first, second, *rest))
    writers.convert(study, "csv", tmp_path / "t.csv")
    lines = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert [line["annotated"] for line in lines[:3]] == ["lesion;organ", "organ", ""]
    assert "cases" not in json.loads(sidecar.location(tmp_path / "t.csv").read_text())
    assert facts(cases.read_study(tmp_path / "t.csv")) == facts(study)
    odd = dataclasses.replace(
        study,
        labels=Labels(classes={"a;b": (1,), "lesion": (2,)}),
        cases=(dataclasses.replace(first, annotated=("a;b",)), *rest),
    )
    writers.convert(odd, "csv", tmp_path / "u.csv")
    assert facts(cases.read_study(tmp_path / "u.csv")) == facts(odd)
    writers.convert(phantom, "csv", tmp_path / "v.csv")
    assert "annotated" not in (tmp_path / "v.csv").read_text()


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_names_come_back(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    nifti.write(folder / "l.nii", np.ones((2, 2, 2), np.uint8), affine=np.eye(4))
    text = st.text("aB1_- .é", min_size=1, max_size=4).filter(str.strip)
    keys = st.lists(
        st.tuples(text, st.sampled_from(["t1", "ct", "é x"]), st.none() | text),
        min_size=1,
        max_size=5,
        unique_by=lambda k: "_".join(p for p in (k[0], k[2], k[1]) if p),
    )
    found = []
    for i, (subject, modality, visit) in enumerate(data.draw(keys)):
        nifti.write(folder / f"{i}.nii", np.full((2, 2, 2), i, np.int16), affine=np.eye(4))
        label = "l.nii" if i == 0 or data.draw(st.booleans()) else None
        found.append(Case(subject, modality, f"{i}.nii", label, visit=visit))
    labels = Labels(classes={data.draw(text): (1,)})
    study = Study("any", ("ct", "t1", "é x"), labels, tuple(found), folder=str(folder))
    for layout in writers.WRITERS:
        writers.convert(study, layout, place(folder, layout))
        assert_same(study, cases.read_study(place(folder, layout)))


def test_nothing_is_lost_by_writing(phantom, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(CodedError, match=r"KUG-E02 .*(something there|without a unigan.json)"):
            writers.convert(phantom, "bids", out, overwrite)
    assert os.listdir(out) == ["thesis.txt"]
    with pytest.raises(CodedError, match=r"KUG-E02 .*images of the study itself"):
        writers.convert(phantom, "bids", phantom.folder, overwrite=True)
    with pytest.raises(CodedError, match=r"KUG-T02 --to: .*did you mean 'nnunet'"):
        writers.convert(phantom, "nnunt", out)
    with pytest.raises(CodedError, match=r"KUG-T02 --output: .*ending in .csv"):
        writers.convert(phantom, "csv", tmp_path / "x")
    remote = dataclasses.replace(phantom, cases=(Case("s", "ct", "gs://b/a.nii"),))
    with pytest.raises(CodedError, match="KUG-D08 s_ct: found a URI"):
        writers.convert(remote, "bids", tmp_path / "x")
    (tmp_path / "a.mgz").write_bytes(b"x")
    other = dataclasses.replace(phantom, cases=(Case("s", "ct", str(tmp_path / "a.mgz")),))
    with pytest.raises(CodedError, match=r"KUG-D10 s_ct: found a.mgz"):
        writers.convert(other, "bids", tmp_path / "x")
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"\x1f\x8bxx")
    bad = dataclasses.replace(phantom, cases=(Case("s", "ct", str(broken), str(broken)),))
    with pytest.raises(CodedError, match="KUG-D07"):
        writers.convert(bad, "msd", tmp_path / "x")
    assert sorted(os.listdir(tmp_path)) == ["a.mgz", "broken.nii.gz", "out"]


def test_command(phantom, tmp_path, capsys):
    def unigan(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main([str(a) for a in arguments])
        return stop.value.code or 0

    source = os.path.join(phantom.folder, "study.json")
    out = tmp_path / "n"
    assert unigan("convert", source, "--to", "nnunet", "-o", out, "--dry-run") == 0
    assert "Would write" in capsys.readouterr().out
    assert not out.exists()
    assert unigan("convert", source, "--to", "nnunet", "-o", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["notes"][0].startswith("6 cases lack")
    assert unigan("convert", source, "--to", "nnunet", "-o", out) == 2
    assert "KUG-E02" in capsys.readouterr().err
    assert unigan("convert", source, "--to", "nnunet", "-o", out, "--overwrite") == 0
    table = tmp_path / "t.csv"
    assert unigan("convert", out, "--to", "csv", "-o", table) == 0
    assert unigan("convert", out, "--to", "csv", "-o", table) == 2
    assert facts(cases.read_study(table)) == facts(phantom)
    assert unigan("init", table, "-o", tmp_path / "study.json") == 0
    assert facts(Study.load(tmp_path / "study.json")) == facts(phantom)


REAL = (
    ("brain_semireal_t1_t2_flair_ct/unpaired_train", "folder", tuple(writers.WRITERS)),
    ("brain_tumour_flair_t1c_brats2013", "brats", ("bids", "msd")),
    ("brain_tumour_2d_4mod_brats2012", "brats", tuple(writers.WRITERS)),
)


@pytest.mark.parametrize(("name", "reader", "layouts"), REAL)
def test_real_folders_come_back(unigan_data, name, reader, layouts, tmp_path):
    assert readers.detect(unigan_data / name) == reader
    study = cases.read_study(unigan_data / name)
    study = dataclasses.replace(study, cases=study.cases[::5])
    for layout in layouts:
        writers.convert(study, layout, place(tmp_path, layout))
        assert_same(study, cases.read_study(place(tmp_path, layout)))


def test_a_table_names_files_of_every_kind(tmp_path):
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for name, values in (("a_xray", pixels), ("a_xray_label", pixels // 40)):
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    study = cases.init_study(tmp_path, fractions=(1.0, 0.0, 0.0))
    writers.convert(study, "csv", tmp_path / "table.csv")
    found = cases.init_study(tmp_path / "table.csv")
    assert [c.image for c in found.cases] == [c.image for c in study.cases]
    with pytest.raises(CodedError, match=r"KUG-D10 .*found a_xray\.png.*--to csv takes files of"):
        writers.convert(study, "bids", tmp_path / "bids")
