"""Canaries in headers, extensions, sidecars, DICOM tags and names come out nowhere.

The default flow runs on three kinds of scans: files whose very names identify (these through
`unigan scrub`), files with clean names and telling headers, and DICOM folders with telling tags.
Then every byte of all that was written, and of all that was printed, is searched.
"""

import base64
import csv
import gzip
import io
import json
import re
import zipfile
import zlib

import nibabel
import numpy as np
import pydicom
import pytest
import tensorflow as tf  # noqa: F401  (at the top: see conftest.pytest_collection_finish)
from commands import unigan
from dicoms import write_series

from keras_unigan.data import nifti, phantoms, volumes

# Where it is planted -> what must not come out; each word names its place in a failure.
HEADER = {
    "descrip": "qxdescrip",
    "aux_file": "qxauxfile",
    "intent_name": "qxintent",
    "db_name": "qxdbname",
    "data_type": "qxtype",
}
WORDS = {
    **HEADER,
    "extension": "qxextension",
    "gzip header": "qxgzipname",
    "sidecar": "qxsidecar",
    "file name": "qxfilename",
    "folder name": "qxfolder",
    "DICOM name": "qxdicomname",
    "DICOM private tag": "qxprivate",
    "DICOM file name": "qxdicomfile",
    "behind the voxels": "qxtrailing",
}


def plant(path, array, affine):
    """Writes NIfTI with a canary wherever a header, the gzip wrapper or a sidecar has room."""
    image = nibabel.Nifti1Image(array, affine)
    for field, word in HEADER.items():
        image.header[field] = word.encode()
    text = WORDS["extension"].encode()
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", text))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file, gzip.GzipFile(WORDS["gzip header"], "wb", 1, file) as packed:
        packed.write(image.to_bytes() + WORDS["behind the voxels"].encode())
    name = path.name.removesuffix(".nii.gz")
    sidecar = {"PatientName": WORDS["sidecar"], "EchoTime": 0.03, "Custom": [WORDS["sidecar"]]}
    path.with_name(f"{name}.json").write_text(json.dumps(sidecar))


def phantom(seed, modality):
    image, label = phantoms.volume(seed, modality, (32, 32, 8))
    return image, label, np.diag([-2.0, 2.0, 6.0, 1.0])


def plant_dicom(folder, seed):
    """Writes a CT series with canaries in tags and file names, and its label map beside it."""
    image, label, affine = phantom(seed, "ct")
    word = WORDS["DICOM name"]
    tags = dict.fromkeys(
        ("InstitutionName", "ReferringPhysicianName", "StudyDescription", "ProtocolName"), word
    )
    tags |= {"PatientName": f"{word}^{word}", "PatientID": word, "SeriesDescription": word}
    affine = affine @ np.diag([-1.0, -1.0, 1.0, 1.0])
    write_series(folder, image.astype(np.int16), affine, **tags)
    for path in sorted(folder.glob("*.dcm")):
        made = pydicom.dcmread(path)
        made.private_block(0x11, WORDS["DICOM private tag"], create=True).add_new(
            1, "LO", WORDS["DICOM private tag"]
        )
        made.save_as(path.with_name(f"{WORDS['DICOM file name']}{path.name}"))
        path.unlink()
    written = volumes.read(folder)
    np.testing.assert_array_equal(nifti.to_ras(written).array.shape, image.shape)
    world = nifti.Volume(label, affine)
    back = nifti.from_ras(nifti.to_ras(world).array, written)
    nifti.write(folder.with_name(f"{folder.name}_seg.nii.gz"), back, written)


def pieces(data):
    """A file's bytes, and those packed inside: gzip, zip, base64 images, compressed chunks."""
    yield data
    if data[:2] == b"\x1f\x8b":
        yield from pieces(gzip.decompress(data))
    if data[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield from pieces(archive.read(name))
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        for found in re.finditer(rb"[zi]TXt", data):
            length = int.from_bytes(data[found.start() - 4 : found.start()], "big")
            text = data[found.end() : found.end() + length]
            yield zlib.decompressobj().decompress(text[text.index(b"\0") + 2 :])
    for found in re.finditer(rb";base64,([A-Za-z0-9+/=]+)", data):
        yield from pieces(base64.b64decode(found[1]))


def leaks(files):
    """(file, place) of every canary in contents or names; files are (name, bytes)."""
    result = []
    for name, data in files:
        texts = [name.encode(), *pieces(data)]
        texts = [text.lower().replace(b"\0", b"") for text in texts]  # UTF-16 of plain text too
        for place, word in WORDS.items():
            if any(word.encode() in text for text in texts):
                result.append((name, place))
    return result


def files_of(folder):
    return [(str(p.relative_to(folder)), p.read_bytes()) for p in folder.rglob("*") if p.is_file()]


def write_inputs(folder):
    """Scans to be scrubbed, scans with telling headers, DICOM folders."""
    for number in range(3):
        image, label, affine = phantom(number, "t1")
        stem = f"{WORDS['folder name']}/{WORDS['file name']}{number}"
        plant(folder / "named" / f"{stem}_t1.nii.gz", image, affine)
        plant(folder / "named" / f"{stem}_seg.nii.gz", label, affine)
        image, label, affine = phantom(10 + number, "t1")
        if number == 2:
            image[0, 0, 0] = np.nan  # becomes a dead letter
        plant(folder / "headers" / f"a{number}_t1.nii.gz", image, affine)
        plant(folder / "headers" / f"a{number}_seg.nii.gz", label, affine)
        plant_dicom(folder / "dicom" / f"b{number}", 20 + number)


def write_table(folder, scrubbed):
    """A CSV over all scans; each kind has training cases."""
    splits = ("train", "val", "test")
    rows = []
    names = sorted(p for p in scrubbed.rglob("*_t1.nii.gz"))
    for number, split in enumerate(splits):
        label = names[number].with_name(names[number].name.replace("_t1.", "_seg."))
        rows.append((f"s{number}", "t1", names[number], label, split))
        stem = folder / "headers" / f"a{number}"
        kept = "train" if number == 2 else split
        rows.append((f"h{number}", "t1", f"{stem}_t1.nii.gz", f"{stem}_seg.nii.gz", kept))
        stem = folder / "dicom" / f"b{number}"
        rows.append((f"d{number}", "ct", stem, f"{stem}_seg.nii.gz", split))
    with open(folder / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows([("subject", "modality", "image", "label", "split"), *rows])
    return folder / "table.csv"


@pytest.mark.parametrize("model", ["segan", pytest.param("unigan", marks=pytest.mark.slow)])
def test_canaries_come_out_nowhere(model, tmp_path, capfd):
    inputs, out = tmp_path / "in", tmp_path / "out"
    write_inputs(inputs)
    # The search finds every one of them where they were planted.
    assert {place for _, place in leaks(files_of(inputs))} == set(WORDS)
    assert unigan("scrub", inputs / "named", "-o", out / "scrubbed") == 0
    assert unigan("scrub", inputs / "dicom", "-o", out / "scrubbed_dicom") == 0
    table = write_table(inputs, out / "scrubbed")
    study, shards, run, models = (out / n for n in ("study.json", "shards", "run", "models/toy"))
    labels = ("--label", "organ=1", "--label", "lesion=2")
    assert unigan("init", table, "-o", study, *labels) == 0
    assert unigan("check", study, "--json") == 3  # the NaN, and that headers identify
    assert unigan("prepare", study, "-o", shards, "-v") == 3
    train = ["--epochs", 1, "--set", "train.steps_per_epoch=2", "--set", "network.filters=4"]
    assert unigan("train", shards, "-o", run, "--model", model, *train, "-v") == 0
    assert unigan("export", run, "-o", models) == 0
    assert unigan("evaluate", run, study) == 0
    assert unigan("report", run, "--study", study) == 0
    scans = [inputs / "headers" / "a0_t1.nii.gz", inputs / "dicom" / "b0"]
    assert unigan("predict", run, *scans, "-o", out / "predicted") == 0
    assert unigan("predict", run, *scans, "-o", out / "bids", "--bids") == 0
    assert unigan("predict", models, study, "-o", out / "job", "-v") == 3
    printed = "".join(capfd.readouterr())
    written = files_of(out)
    assert leaks([*written, ("what was printed", printed.encode())]) == []
    # All kinds of outputs were searched.
    assert "KUG-D06" in printed
    names = " ".join(name for name, _ in written)
    for kind in (
        *("shards/dead_letters.jsonl", "shards/train/t1-", "shards/run.json", "run/network.keras"),
        *("run/checkpoints/", "run/history.csv", "run/run.json", "run/report.html", "run/tb/"),
        *("run/samples/", "run/metrics.json", "saved_model.pb", "variables/variables.data"),
        *("bids/dseg.tsv", "bids/sub-b0/anat/sub-b0_desc-image_dseg.json", "run/metrics.csv"),
        *("predicted/a0_t1_seg.nii.gz", "predicted/b0_seg.nii.gz", "job/run.json"),
        *("job/dead_letters.jsonl", "job/s0_t1_seg.nii.gz", "scrubbed/", "scrubbed_dicom/"),
    ):
        assert kind in names, kind


def test_the_search_sees_through_wrappers():
    word = WORDS["descrip"].upper().encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.gz", gzip.compress(word))
    page = b'<img src="data:image/png;base64,' + base64.b64encode(packed.getvalue()) + b'">'
    wide = WORDS["descrip"].encode("utf-16-le")
    for data in (word, gzip.compress(word), packed.getvalue(), page, wide):
        assert leaks([("file", data)]) == [("file", "descrip")]
    assert leaks([("qxdescrip.txt", b"")]) == [("qxdescrip.txt", "descrip")]
    assert leaks([("file", b"harmless")]) == []
