"""Requests made of chance: an answer or a refusal, never an error inside the server."""

import json
import random

import grpc
import httpx
from serving_stubs import Stubs

from keras_unigan.serving import wire

INPUTS = {
    "serving_default": ["image"],
    "pair": ["a", "b"],
    "text": ["text"],
    "scalar": ["x"],
    "segment_nifti": ["nifti_bytes", "modality"],
}
LEAVES = (
    *(1, 1.5, "x", None, True, 2**70, -1, float("nan"), 1e400),
    *({"b64": "eA=="}, {"b64": 1}, {}, {"x": 1}, [], [1], [[1]]),
)


def tree(draw, depth=0):
    """A JSON value."""
    if depth > 4 or draw.random() < 0.3:
        return draw.choice(LEAVES)
    if draw.random() < 0.8:
        return [tree(draw, depth + 1) for _ in range(draw.randint(0, 3))]
    keys = draw.sample(["image", "a", "b", "x", "b64", "zz"], draw.randint(0, 2))
    return {key: tree(draw, depth + 1) for key in keys}


def test_rest(server):
    draw, codes = random.Random(0), set()
    with httpx.Client(base_url=server.rest_url, timeout=30) as rest:
        for _ in range(200):
            keys = draw.sample(["instances", "inputs", "examples", "context"], draw.randint(1, 2))
            body = {key: tree(draw) for key in keys}
            names = [*INPUTS, "classify", "regress", "leak"]
            body["signature_name"] = draw.choice(names)
            method = draw.choice(["predict", "predict", "classify", "regress"])
            answer = rest.post(f"/v1/models/toy:{method}", content=json.dumps(body))
            codes.add(answer.status_code)
            assert answer.status_code in (200, 400), (body, answer.text)
            answer.json()
    assert codes == {200, 400}


def fill(draw, proto):
    """Fills a TensorProto with whatever."""
    proto.dtype = draw.choice([0, 1, 1, 1, 2, 3, 7, 7, 9, 9, 10, 14, 19, 20, 22, 101])
    for _ in range(draw.choice([0, 1, 1, 1, 2, 4, 4, 4, 70])):
        proto.tensor_shape.dim.add(size=draw.choice([0, 1, 1, 2, 3, -1, 2**31, 2**62]))
    proto.tensor_shape.unknown_rank = draw.random() < 0.1
    if draw.random() < 0.5:
        proto.tensor_content = draw.randbytes(draw.choice([0, 1, 4, 8, 16, 36]))
        return
    proto.float_val.extend([1.0] * draw.randint(0, 5))
    proto.double_val.extend([1.0] * draw.randint(0, 2))
    proto.int_val.extend([draw.choice([-1, 300, 2**30])] * draw.randint(0, 3))
    proto.int64_val.extend([2**62] * draw.randint(0, 3))
    proto.half_val.extend([draw.choice([1, 2**20])] * draw.randint(0, 2))
    proto.string_val.extend([draw.randbytes(5) for _ in range(draw.randint(0, 3))])


def test_grpc(server):
    draw, codes, stubs = random.Random(0), set(), Stubs(server.grpc_addr)
    for _ in range(300):
        request = wire.predict_pb2.PredictRequest()
        request.model_spec.name = "toy"
        request.model_spec.signature_name = draw.choice(list(INPUTS))
        for name in INPUTS[request.model_spec.signature_name]:
            fill(draw, request.inputs[name])
        try:
            stubs.prediction.Predict(request, timeout=30)
            codes.add("OK")
        except grpc.RpcError as error:
            codes.add(error.code().name)
    stubs.channel.close()
    assert codes == {"OK", "INVALID_ARGUMENT"}
