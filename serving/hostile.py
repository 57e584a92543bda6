"""Requests that do not fit a model: each must be refused, and none may harm the server."""

import numpy as np

from keras_unigan.exporting.requests import strings


def requests(target, good):
    """Pairs of a name and a function that sends such a request.

    Args:
        target: `gates.Target`.
        good: Signature -> inputs that fit.

    Yields:
        `(name, send)`; `send` raises `grpc.RpcError` where it is refused.
    """
    inputs = good["segment"]
    image, statistics = inputs["image"], inputs["statistics"]
    changes = {
        "wrong rank": {"image": image[0]},
        "wrong type": {"image": image.astype(np.float64)},
        "wrong channels": {"image": np.concatenate([image, image], -1)},
        "no images": {name: array[:0] for name, array in inputs.items()},
        "NaN": {"image": image * np.nan},
        "wrong statistics": {"statistics": statistics[..., :3]},
        "unknown modality": {"modality": strings("no such modality")},
    }
    for name, change in changes.items():
        yield name, _sender(target, "segment", {**inputs, **change})
    yield "huge sizes", lambda: target.send(_huge(target, inputs))
    yield "garbage message", lambda: _garbage(target)
    if "segment_nifti" in good:
        inputs = good["segment_nifti"]
        whole = inputs["nifti_bytes"][0]
        files = {
            "cut file": whole[:-1],
            "cut header": whole[:100],
            "empty file": b"",
            "garbage file": b"\x1f\x8b" + bytes(range(200)),
            "lying sizes": whole[:42] + b"\xff\x7f\xff\x7f\xff\x7f" + whole[48:],
        }
        for name, data in files.items():
            yield name, _sender(target, "segment_nifti", {**inputs, "nifti_bytes": strings(data)})
    if "segment_volume" in good:
        inputs = good["segment_volume"]
        for name, spacing in (("huge spacing", 1e30), ("no spacing", 0.0), ("NaN spacing", np.nan)):
            change = {"spacing": np.full((1, 3), spacing, np.float32)}
            yield name, _sender(target, "segment_volume", {**inputs, **change})
    if "serve_examples" in good:
        yield (
            "garbage record",
            _sender(target, "serve_examples", {"examples": strings(b"\x00garbage")}),
        )


def _sender(target, signature, inputs):
    return lambda: target.predict(signature, inputs)


def _huge(target, inputs):
    """A request whose image claims far more voxels than it has bytes."""
    request = target.request("segment", inputs)
    for dimension in request.inputs["image"].tensor_shape.dim:
        dimension.size = max(dimension.size, 1 << 20)
    return request


def _garbage(target):
    """Bytes that are no message."""
    method = "/tensorflow.serving.PredictionService/Predict"
    return target.channel.unary_unary(method)(b"\xff" * 64, timeout=target.timeout)
