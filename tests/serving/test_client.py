import concurrent.futures
import dataclasses
import json
import shutil
import socket
import time

import grpc
import keras
import nibabel as nib
import numpy as np
import pytest

from keras_unigan import config, export, prediction
from keras_unigan.errors import CodedError
from keras_unigan.networks import UNet
from keras_unigan.serving import wire
from keras_unigan.serving.client import Client
from keras_unigan.serving.server import Server


@pytest.fixture(scope="module")
def client(unigan):
    with Client(unigan.grpc_addr, "unigan") as found:
        yield found


@pytest.fixture(scope="module")
def toy(server):
    with Client(server.grpc_addr, "toy", retries=0) as found:
        yield found


def scan(shape=(21, 18, 5), seed=0):
    """Flipped and oblique scan of another spacing than the plan's, not divisible by anything."""
    array = np.random.default_rng(seed).uniform(0, 300, shape).astype(np.float32)
    affine = np.array([[0, -1.2, 0.1, 40], [1.6, 0, 0, -30], [0, 0.05, 3.5, 10], [0, 0, 0, 1.0]])
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=2)
    return image


def test_status_metadata_and_card(client, exported):
    assert client.status() == [
        {"version": 1, "state": "AVAILABLE", "error_code": 0, "error_message": ""}
    ]
    found = client.metadata()
    assert found["segment"]["inputs"] == {
        "image": {"dtype": "float", "shape": [-1, -1, -1, 1]},
        "modality": {"dtype": "string", "shape": [-1]},
        "statistics": {"dtype": "float", "shape": [-1, 4]},
    }
    card = client.describe()
    assert set(found) == set(card["signatures"]) >= {"serving_default", "segment", "describe"}
    assert card["plan"] == json.loads(json.dumps(exported[1].to_dict()))


def test_predict_answers_arrays(toy):
    image = np.random.default_rng(0).normal(size=(2, 5, 7, 1)).astype(np.float32)
    for inputs in (image, {"image": image}):
        found = toy.predict(inputs)
        np.testing.assert_array_equal(found["probabilities"], 2 * image)
        assert found["label_map"].dtype == np.uint8
    assert list(toy.predict(image, outputs=["label_map"])) == ["label_map"]
    found = toy.predict({"text": ["ct", b"t1"]}, "text")
    assert found["raw_bytes"].tolist() == [b"ct\0", b"t1\0"]
    found = toy.predict({"text": [b"ct"]}, "text")
    assert found["text"].tolist() == [b"CT"]


@pytest.mark.parametrize("via", ["windows", "file"])
@pytest.mark.parametrize("modality", [None, "ct", "T1"])
def test_segment_equals_local_inference(client, exported, modality, via):
    network, plan, _, _ = exported
    image = scan()
    local = prediction.predict((network, plan), image, modality)
    steps = []
    served = client.segment(image, modality, via=via, progress=lambda *s: steps.append(s))
    assert len(np.unique(local.get_fdata())) > 1
    np.testing.assert_array_equal(served.get_fdata(), local.get_fdata())
    np.testing.assert_array_equal(served.affine, image.affine)
    header = served.header
    assert bytes(header["descrip"].item()) == b"keras_unigan: version 1 of unigan"
    for field in ("qform_code", "sform_code", "pixdim", "xyzt_units"):
        np.testing.assert_array_equal(header[field], local.header[field])
    if via == "file":
        assert steps == [(0, 1), (1, 1)]
    else:
        assert steps[-1][0] == steps[-1][1] > 4
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)


def test_volumes_of_regions_are_segmented_in_3d(exported, tmp_path):
    plan = dataclasses.replace(
        exported[1], labels=config.Labels(regions={"whole": (1, 2), "core": (2,)})
    )
    keras.utils.set_random_seed(1)
    network = UNet(classes=2, filters=2, strides=((2, 2, 1),), spatial_dims=3)
    export.export(network, plan, tmp_path / "m" / "1")
    with Server(tmp_path / "m") as running, Client(running.grpc_addr, "m") as client:
        found = client.segment(scan(), "t1", batch_size=3).get_fdata()
    local = prediction.predict((network, plan), scan(), "t1").get_fdata()
    assert set(np.unique(local)) == {0, 1, 2}
    np.testing.assert_array_equal(found, local)


def test_segment_gives_the_kind_that_it_got(client, tmp_path):
    image = scan()
    nib.save(image, tmp_path / "scan.nii.gz")
    wanted = client.segment(image, "ct")
    assert isinstance(wanted, nib.Nifti1Image)
    assert set(np.unique(wanted.get_fdata())) <= {0, 3, 5}
    found = client.segment(tmp_path / "scan.nii.gz", "ct")
    np.testing.assert_array_equal(found.get_fdata(), wanted.get_fdata())
    written = client.segment(
        str(tmp_path / "scan.nii.gz"), "ct", tmp_path / "out.nii", batch_size=1
    )
    assert written == tmp_path / "out.nii"
    written = nib.load(written)
    np.testing.assert_array_equal(written.get_fdata(), wanted.get_fdata())
    np.testing.assert_allclose(written.affine, image.affine, atol=1e-5)
    assert (int(written.header["qform_code"]), int(written.header["sform_code"])) == (1, 2)
    for array in (image.get_fdata(), image.get_fdata()[:, :, 0]):
        found = client.segment(array, "ct")
        assert isinstance(found, np.ndarray)
        assert (found.shape, found.dtype) == (array.shape, np.uint8)


def test_an_unknown_modality_is_told_before_anything_is_sent(client):
    with pytest.raises(CodedError, match=r"KUG-T03 modality: found 't2'.*'ct', 't1'"):
        client.segment(scan(), "t2")


@pytest.mark.parametrize(
    ("arguments", "request_", "text"),
    [
        ({"model": "no"}, {}, r"KUG-S02 .* no: found Servable not found for request: Latest\(no\)"),
        ({"version": 9}, {}, r"KUG-S02 .*Specific\(toy, 9\), expected one of the versions 1\."),
        ({"label": "x"}, {}, "KUG-S02 .*Unrecognized servable version label: x"),
        (
            {},
            {"signature": "pairs"},
            r"KUG-S02 .*\"pairs\" not found\. \(did you mean 'pair'\?\), expected one of \[",
        ),
        ({}, {"inputs": np.zeros(3, np.float32)}, "KUG-S04 .*INVALID_ARGUMENT: Input image has"),
        ({}, {"inputs": np.zeros((1, 1, 1, 1))}, "KUG-S04 .*to be float but double is provided"),
    ],
)
def test_refusals_are_coded(server, arguments, request_, text):
    arguments = {"model": "toy", **arguments}
    request_ = {"inputs": np.zeros((1, 1, 1, 1), np.float32), **request_}
    with (
        Client(server.grpc_addr, **arguments) as client,
        pytest.raises(CodedError, match=text) as caught,
    ):
        client.predict(**request_)
    assert caught.value.exit_code == 4


def test_a_model_of_others_has_no_card(toy):
    with pytest.raises(CodedError, match=r'KUG-S02.*key "describe" not found'):
        toy.segment(scan())


def test_a_message_that_is_too_large_is_coded(base):
    with (
        Server(base, max_request_bytes=10_000) as running,
        Client(running.grpc_addr, "toy") as client,
        pytest.raises(CodedError, match=r"KUG-S03.*lower batch_size, or raise --max_req"),
    ):
        client.predict(np.zeros((1, 64, 64, 1), np.float32))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_no_server_is_coded():
    with (
        Client(f"127.0.0.1:{free_port()}", "toy", retries=1) as client,
        pytest.raises(CodedError, match=r"KUG-S01.*no answer.*unigan serve DIR --port"),
    ):
        client.status()


def test_a_late_answer_is_coded(server):
    with (
        Client(server.grpc_addr, "toy", timeout=0.2) as client,
        pytest.raises(CodedError, match=r"KUG-S01.*no answer within 0\.2 s.*timeout"),
    ):
        client.predict({"rounds": np.array([10**7], np.int32)}, "slow")


@pytest.mark.parametrize("address", ["127.0.0.1", "http://127.0.0.1:1", "a b:1", ""])
def test_addresses_of_another_form_are_refused(address):
    with pytest.raises(CodedError, match=r"KUG-S01.*no address of a gRPC server"):
        Client(address, "m")


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="one of version and label, got both"):
        Client("h:1", "m", version=1, label="x")
    with pytest.raises(ValueError, match="timeout above 0 seconds, got 0"):
        Client("h:1", "m", timeout=0)


class Flaky(wire.prediction_service_pb2_grpc.PredictionServiceServicer):
    """Fails with a code a number of times, then answers."""

    def __init__(self, code, failures):
        self.code, self.failures, self.calls = code, failures, 0

    def Predict(self, request, context):
        self.calls += 1
        if self.calls <= self.failures:
            context.abort(self.code, "not now")
        answer = wire.predict_pb2.PredictResponse()
        # As a stock server answers: value fields, written one by one.
        answer.outputs["y"].dtype = 1
        answer.outputs["y"].tensor_shape.dim.add(size=2)
        answer.outputs["y"].float_val.extend([1.5, 2.5])
        return answer


@pytest.mark.parametrize(
    ("code", "failures", "calls"),
    [
        (grpc.StatusCode.UNAVAILABLE, 2, 3),
        (grpc.StatusCode.UNAVAILABLE, 9, 4),
        (grpc.StatusCode.INTERNAL, 1, 1),
    ],
)
def test_only_an_unavailable_server_is_asked_again(code, failures, calls):
    service = Flaky(code, failures)
    other = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    wire.prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, other)
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()
    try:
        with Client(f"127.0.0.1:{port}", "m", retries=3) as client:
            if failures < calls:
                assert client.predict(np.zeros(1))["y"].tolist() == [1.5, 2.5]
            else:
                with pytest.raises(CodedError, match=r"KUG-S0[14].*not now"):
                    client.predict(np.zeros(1))
    finally:
        other.stop(None).wait()
    assert service.calls == calls


def test_one_scan_is_segmented_by_one_version(exported, tmp_path, monkeypatch):
    network, plan, folder, _ = exported
    base = tmp_path / "unigan"
    shutil.copytree(folder / "1", base / "1")
    shutil.copytree(folder / "1", tmp_path / "2")
    with (
        Server(base, file_system_poll_wait_seconds=0.05) as running,
        Client(running.grpc_addr, "unigan") as client,
    ):
        real, asked = client._predict, []

        def watch(inputs, signature, outputs, version, timeout=None):
            answer = real(inputs, signature, outputs, version, timeout)
            asked.append((signature, answer[1]))
            if len(asked) == 3:
                (tmp_path / "2").rename(base / "2")
                while [v["state"] for v in client.status()] != ["AVAILABLE", "END"]:
                    time.sleep(0.02)
            return answer

        monkeypatch.setattr(client, "_predict", watch)
        found = client.segment(scan(), "ct", batch_size=2, via="windows")
    # The first version went away after two requests: all windows were asked again of the second.
    assert asked[:3] == [("describe", 1), ("segment", 1), ("segment", 1)]
    assert asked[3] == ("describe", 2)
    assert len(asked) > 6
    assert set(asked[4:]) == {("segment", 2)}
    local = prediction.predict((network, plan), scan(), "ct")
    np.testing.assert_array_equal(found.get_fdata(), local.get_fdata())
    assert b"version 2 of unigan" in bytes(found.header["descrip"].item())
