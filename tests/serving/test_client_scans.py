"""What the client sends of a scan, and what it makes of the answer."""

import json
import struct

import nibabel as nib
import numpy as np
import pytest

from keras_unigan import prediction, translation
from keras_unigan.data import nifti
from keras_unigan.errors import CodedError
from keras_unigan.serving import client as client_module
from keras_unigan.serving import scans, wire
from keras_unigan.serving.client import Client
from keras_unigan.serving.server import Server


def scan(array, affine=None, kind=nib.Nifti1Image):
    affine = np.diag([-1.5, 1.0, 3.0, 1.0]) if affine is None else affine
    return kind(array, affine)


def noise(shape=(14, 13, 4), seed=0):
    """Whole numbers in int16, with a background of 0."""
    array = np.random.default_rng(seed).integers(-500, 1500, shape).astype(np.int16)
    array[:2], array[:, -2:] = 0, 0
    return array


@pytest.fixture(scope="module")
def client(unigan):
    with Client(unigan.grpc_addr, "unigan") as found:
        yield found


@pytest.fixture
def sent(monkeypatch, client):
    """Requests of the module's client: (signature, bytes of the message)."""
    seen, real = [], client._channel.call

    def call(method, request, timeout=None):
        if isinstance(request, wire.predict_pb2.PredictRequest):
            seen.append((request.model_spec.signature_name, request.ByteSize()))
        return real(method, request, timeout)

    monkeypatch.setattr(client._channel, "call", call)
    return seen


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.array([0, 255], np.int64), "uint8"),
        (np.array([-1024.0, 3071.0]), "int16"),
        (np.array([0.0, 65535.0], np.float32), "uint16"),
        (np.array([-70000, 5], np.int64), "int32"),
        (np.array([0.5, 2.0]), "float32"),
        (np.array([0.1, 2.0]), "float64"),
        (np.array([0.0, 2.0**40]), "float32"),
        (np.array([1, 2**40 + 1], np.int64), "float64"),
        (np.array([0.0, 1e300]), "float64"),
        (np.array([True, False]), "uint8"),
        (np.array([0.5, 1.5], np.float16), "float32"),
    ],
)
def test_values_travel_exactly_in_the_smallest_type(array, dtype):
    found = scans.narrow(array)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.astype(array.dtype), array)


def test_a_whole_file_is_one_small_message_without_a_name(client, sent):
    image = scan(noise())
    image.header["descrip"] = b"DOE^JANE"
    client.segment(image, "ct")
    assert [name for name, _ in sent] == ["describe", "segment_nifti"]
    # int16 there, and uint8 back.
    assert 0 < sent[1][1] - (352 + 2 * image.dataobj.size) < 200
    volume = nifti.from_image(image)
    data = scans.to_bytes(volume)
    assert b"DOE" not in data
    back = nib.Nifti1Image.from_bytes(data)
    np.testing.assert_array_equal(np.asarray(back.dataobj), noise())
    np.testing.assert_allclose(back.affine, image.affine)


def test_a_scaled_file_travels_as_what_it_means(client, sent, tmp_path, exported):
    # The header says that 1024 has to be taken off: nibabel gives float64.
    data = bytearray(nifti.encode(noise(), affine=np.diag([-1.5, 1.0, 3.0, 1.0])))
    data[112:120] = struct.pack("<2f", 1.0, -1024.0)
    nifti.write_bytes(tmp_path / "ct.nii.gz", bytes(data))
    assert nib.load(tmp_path / "ct.nii.gz").dataobj.inter == -1024
    found = client.segment(tmp_path / "ct.nii.gz", "ct")
    assert sent[-1][1] < 2 * noise().size + 600
    local = prediction.predict(exported[:2], tmp_path / "ct.nii.gz", "ct")
    np.testing.assert_array_equal(found.get_fdata(), local.get_fdata())


@pytest.mark.parametrize("kind", ["nifti2", "big-endian", "picture", "slice", "fractions", "array"])
def test_files_that_the_signature_would_refuse_are_written_anew(
    client, sent, exported, tmp_path, kind
):
    source, output = noise(), tmp_path / "out.nii.gz"
    if kind == "nifti2":
        source = scan(source, kind=nib.Nifti2Image)
    elif kind == "big-endian":
        header = nib.Nifti1Header(endianness=">")
        header.set_data_dtype(np.int16)
        nib.save(nib.Nifti1Image(source, np.eye(4), header), tmp_path / "big.nii")
        assert (tmp_path / "big.nii").read_bytes()[:4] == (348).to_bytes(4, "big")
        source = tmp_path / "big.nii"
    elif kind == "picture":
        from PIL import Image

        Image.fromarray((source[:, :, 0] % 256).astype(np.uint8)).save(tmp_path / "a.png")
        source, output = tmp_path / "a.png", tmp_path / "out.png"
    elif kind == "slice":
        source = scan(source[:, :, 0])
    elif kind == "fractions":
        source = scan(source / 7.0)
    written = client.segment(source, "t1", output)
    assert sent[-1][0] == "segment_nifti"
    prediction.predict(exported[:2], source, "t1", tmp_path / f"local_{output.name}")
    if kind == "picture":
        from PIL import Image

        found, wanted = (np.asarray(Image.open(p)) for p in (written, tmp_path / "local_out.png"))
    else:
        found, wanted = nib.load(written), nib.load(tmp_path / "local_out.nii.gz")
        assert type(found) is type(wanted)
        assert b"version 1 of unigan" in bytes(found.header["descrip"].item())
        np.testing.assert_array_equal(found.affine, wanted.affine)
        found, wanted = np.asarray(found.dataobj), np.asarray(wanted.dataobj)
    np.testing.assert_array_equal(found, wanted)


def test_bad_scans_are_told_before_anything_is_sent(client, sent):
    array = noise().astype(np.float32)
    array[3, 3, 2] = np.nan
    with pytest.raises(CodedError, match="KUG-D06"):
        client.segment(array, "ct")
    with pytest.raises(CodedError, match="KUG-D12"):
        client.segment(np.ones((4, 4, 4)), "ct")
    assert {name for name, _ in sent} == {"describe"}


def test_batches_stay_below_the_cap_and_come_together_exactly(server):
    images = np.random.default_rng(0).normal(size=(11, 16, 16, 1)).astype(np.float32)
    text = np.array([b"ct", b"t1", b"ct\0"[:2]] * 3, object)
    with Client(server.grpc_addr, "toy", max_message_bytes=4096 + 3 * 1300) as client:
        real, sizes = client._channel.call, []

        def call(method, request, timeout=None):
            sizes.append((request.ByteSize(), len(request.inputs)))
            return real(method, request, timeout)

        client._channel.call = call
        found = client.predict_batches(images)
        np.testing.assert_array_equal(found["probabilities"], 2 * images)
        np.testing.assert_array_equal(found["label_map"], images[..., 0] > 0)
        # Three fit by what is sent; the answer has a label map more.
        assert len(sizes) == 4
        assert max(size for size, _ in sizes) <= client.max_message_bytes
        found = client.predict_batches({"text": text}, "text", batch_size=2)
        assert found["raw_bytes"].tolist() == [t + b"\0" for t in text]
        assert len(sizes) == 4 + 5
        with pytest.raises(CodedError, match=r"KUG-S03.*a message of 16384 bytes, expected at mo"):
            client.predict_batches(np.zeros((2, 64, 64, 1), np.float32))
        with pytest.raises(CodedError, match=r"KUG-S03.*raise max_message_bytes"):
            client.predict(np.zeros((1, 64, 64, 1), np.float32))
        with pytest.raises(ValueError, match=r"inputs of one length, got \[1, 2\]"):
            client.predict_batches({"a": np.zeros((1, 2)), "b": np.zeros(2, np.int64)}, "pair")
        with pytest.raises(CodedError, match=r"KUG-S04.*has not one row for each example"):
            client.predict_batches({"x": np.zeros(2, np.float32)}, "scalar")
    assert len(sizes) == 11


def test_windows_of_a_scan_keep_below_the_cap_and_change_nothing(unigan, exported):
    image = scan(noise((60, 50, 2)))
    wanted = prediction.predict(exported[:2], image, "ct").get_fdata()
    # The answer, three classes, is three times as large as what is sent.
    cap = 4096 + 2 * 3 * 4 * 16 * 16
    with Client(unigan.grpc_addr, "unigan", max_message_bytes=cap) as client:
        real, counts = client._predict, []

        def watch(inputs, signature, *rest):
            counts.append((signature, len(next(iter(inputs.values())))))
            return real(inputs, signature, *rest)

        client._predict = watch
        # The file is larger than the cap: "auto" falls back to windows.
        found = client.segment(image, "ct", batch_size=8).get_fdata()
        np.testing.assert_array_equal(found, wanted)
        assert {name for name, _ in counts} == {"describe", "segment_nifti", "segment"}
        assert {count for name, count in counts if name == "segment"} <= {1, 2}
        with pytest.raises(CodedError, match=r"KUG-S03.*via='windows'"):
            client.segment(image, "ct", via="file")


@pytest.mark.parametrize(
    ("code", "found", "falls"),
    [
        ("KUG-S03", "a message of 9 bytes (larger than max (8 vs. 9))", True),
        ("KUG-S04", "INVALID_ARGUMENT: The volume is too large", True),
        ("KUG-S04", "INVALID_ARGUMENT: The volume has the same value everywhere", False),
        ("KUG-S01", "no answer within 600 s", False),
    ],
)
def test_windows_answer_where_the_server_refuses_the_size_of_a_file(
    client, sent, monkeypatch, code, found, falls
):
    def refuse(*_):
        raise CodedError(code, "there", found, "another")

    monkeypatch.setattr(client, "whole", refuse)
    with pytest.raises(CodedError, match=code):
        client.segment(noise(), "ct", via="file")
    if falls:
        assert client.segment(noise(), "ct").shape == noise().shape
        assert sent[-1][0] == "segment"
    else:
        with pytest.raises(CodedError, match=code):
            client.segment(noise(), "ct")


@pytest.mark.parametrize(
    "data",
    [b"", b"x" * 400, None],
    ids=["nothing", "garbage", "another size"],
)
def test_an_answer_that_is_no_label_map_of_the_scan_is_refused(data):
    if data is None:
        data = nifti.encode(np.zeros((4, 3, 3), np.uint8), affine=np.eye(4))
    with pytest.raises(CodedError, match=r"KUG-S04 here.*no label map of the scan"):
        scans.label_map_of(data, (4, 3, 2), "here")
    good = nifti.encode(np.arange(24, dtype=np.uint8).reshape(4, 3, 2), affine=np.eye(4))
    found = scans.label_map_of(good, (4, 3, 2), "here")
    np.testing.assert_array_equal(found, np.arange(24).reshape(4, 3, 2))


def test_the_mark_fits_into_a_header():
    assert scans.mark("liver", 7) == "keras_unigan: version 7 of liver"
    long = scans.mark("ä" * 80, 12)
    assert len(long.encode()) <= 79
    assert long.startswith("keras_unigan: version 12 of ä")


def test_an_unknown_way_is_refused(client):
    with pytest.raises(ValueError, match=r"via to be one of .*, got 'magic'"):
        client.segment(scan(noise()), via="magic")


@pytest.fixture(scope="module")
def painter(exported, tmp_path_factory):
    """Server of "painter", which translates by arithmetic: t1 is half the intensity and 10 more."""
    import tensorflow as tf

    plan = exported[1]
    card = {
        "plan": plan.to_dict(),
        "spatial_dims": 2,
        "network": "Painter",
        "labels": {"names": list(plan.labels.names)},
        "signatures": {"describe": "", "translate": ""},
    }

    class Painter(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, "request")])
        def describe(self, request):
            return {"model_card": tf.fill(tf.shape(request), json.dumps(card))}

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, None, None, 1], tf.float32, "image"),
                tf.TensorSpec([None], tf.string, "modality"),
                tf.TensorSpec([None], tf.string, "target"),
            ]
        )
        def translate(self, image, modality, target):
            wanted = tf.cast(tf.equal(target, "t1"), tf.float32)[:, None, None, None]
            return {"translated": (image * 0.5 + 10.0) * wanted}

    module = Painter()
    folder = tmp_path_factory.mktemp("painter") / "painter"
    names = {"describe": module.describe, "translate": module.translate}
    tf.saved_model.save(module, str(folder / "1"), names)
    with Server(folder) as running:
        yield running, plan


def test_translate_paints_what_is_not_background(painter, tmp_path):
    running, plan = painter
    array = np.random.default_rng(1).uniform(1, 4, (6, 5, 11)).astype(np.float32)
    array[[0, -1]], array[:, :, 3] = 0, 0  # margins, and an empty slice
    image = scan(array, np.diag([*plan.spacing, 1.0]))
    low, high = translation.intensity_range(plan.normalization["t1"])
    background = translation.background(plan.normalization["t1"])
    wanted = np.where(array > 0, np.clip(array * 0.5 + 10, low, high), background)
    steps = []
    with Client(running.grpc_addr, "painter") as client:
        out = tmp_path / "t1.nii.gz"
        assert client.translate(image, "T1", "ct", out, progress=lambda *s: steps.append(s)) == out
        found = nib.load(out)
        np.testing.assert_allclose(found.get_fdata(), wanted, atol=1e-5)
        np.testing.assert_allclose(found.affine, image.affine)
        said = bytes(found.header["descrip"].item())
        assert said == b"SYNTHETIC (keras_unigan): version 1 of painter"
        record = json.loads((tmp_path / "t1.json").read_text())
        assert (record["Synthetic"], record["Network"], record["ModelVersion"]) == (
            True,
            "Painter",
            1,
        )
        assert steps == [(8, 10), (10, 10)]
        found = client.translate(array, "t1", spacing=plan.spacing)
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        with pytest.raises(CodedError, match=r"KUG-T03 modality: found 'pet'"):
            client.translate(array, "pet")


def test_models_without_a_signature_are_refused_by_name(client, painter):
    with pytest.raises(CodedError, match=r"KUG-T04.*without the signature translate"):
        client.translate(scan(noise()), "t1")
    with (
        Client(painter[0].grpc_addr, "painter") as other,
        pytest.raises(CodedError, match=r"KUG-S02.*without the signature segment_nifti"),
    ):
        other.segment(scan(noise()), via="file")


def test_windows_of_several_channels_have_statistics_of_each():
    seen = {}

    class Recorder:
        def batches(self, inputs, *rest, **more):
            seen.update(inputs)
            return {"probabilities": None}

    ask = client_module._Ask(Recorder(), 1, {"labels": {"names": ["a", "b", "c"]}})
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    ask(np.zeros((3, 4, 4, 2)), None, rows)
    assert seen["statistics"].shape == (3, 2, 4)
    np.testing.assert_array_equal(seen["statistics"][2], rows)
    assert seen["modality"].tolist() == [b""] * 3
