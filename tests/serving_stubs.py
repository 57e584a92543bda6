"""Plain stubs and requests, as a client of somebody else would write them."""

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2_grpc

from keras_unigan.serving import wire

UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Stubs:
    """The stubs that a third-party client would use."""

    def __init__(self, address):
        self.channel = grpc.insecure_channel(address, options=UNLIMITED)
        self.prediction = wire.prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.models = wire.model_service_pb2_grpc.ModelServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)


def predict(name="toy", signature="", inputs=None, outputs=(), **spec):
    """PredictRequest with `tensor_content`."""
    request = wire.predict_pb2.PredictRequest(output_filter=outputs)
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    if "version" in spec:
        request.model_spec.version.value = spec["version"]
    if "label" in spec:
        request.model_spec.version_label = spec["label"]
    for key, value in (inputs or {}).items():
        wire.fill(request.inputs[key], np.asarray(value), tensor_content=True)
    return request


IMAGE = np.arange(12, dtype=np.float32).reshape(1, 3, 4, 1) - 5


def refused(method, request, **options):
    """(code name, text) of an RPC that fails."""
    with pytest.raises(grpc.RpcError) as caught:
        method(request, timeout=20, **options)
    return caught.value.code().name, caught.value.details()
