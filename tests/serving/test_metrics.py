"""The Prometheus page: TensorFlow Serving's names, labels and buckets."""

import re
import shutil

import httpx
import numpy as np
import pytest
from serving_stubs import IMAGE, Stubs, predict, refused

from keras_unigan.serving import push
from keras_unigan.serving.metrics import REQUEST_COUNT, REQUEST_LATENCY, Metrics
from keras_unigan.serving.server import Server

_NAME = r"[a-zA-Z_:][\w:]*"
LINE = re.compile(
    rf"# TYPE {_NAME} (counter|histogram)"
    rf'|{_NAME}\{{(\w+="([^"\\]|\\.)*",?)+\}} \d+(\.\d)?'
)


def test_a_page():
    metrics = Metrics()
    assert metrics.page() == "\n"
    metrics.count(REQUEST_COUNT, 'a"\\\n', "OK")
    for time in (5, 10, 11, 1e9, 1e12):
        metrics.observe(REQUEST_LATENCY, time, "m", "Predict", "GRPC")
    lines = metrics.page().splitlines()
    assert lines[:2] == [
        "# TYPE :tensorflow:serving:request_count counter",
        r':tensorflow:serving:request_count{model_name="a\"\\\n",status="OK"} 1',
    ]
    assert lines[2] == "# TYPE :tensorflow:serving:request_latency histogram"
    labels = 'model_name="m",API="Predict",entrypoint="GRPC"'
    buckets = [line for line in lines if "_bucket" in line]
    assert len(buckets) == 34
    for line, le, count in (
        (buckets[0], "10", 2),
        (buckets[1], "18", 3),
        (buckets[2], "32.4", 3),
        (buckets[32], "1.47476e+09", 4),
        (buckets[33], "+Inf", 5),
    ):
        assert line == f':tensorflow:serving:request_latency_bucket{{{labels},le="{le}"}} {count}'
    assert lines[-2] == f":tensorflow:serving:request_latency_sum{{{labels}}} 1001000000026.0"
    assert lines[-1] == f":tensorflow:serving:request_latency_count{{{labels}}} 5"


@pytest.fixture
def measured(base, toy_models):
    shutil.rmtree(base / "1")
    shutil.copytree(toy_models[0], base / "1")
    push.write_warmup(base / "1", {"text": {"text": np.array([b"ct"], object)}})
    (base.parent / "monitoring.config").write_text(
        'prometheus_config { enable: true path: "/metrics" }'
    )
    with Server(base, monitoring_config_file=str(base.parent / "monitoring.config")) as running:
        yield running


def test_requests_are_counted(measured, base):
    stubs = Stubs(measured.grpc_addr)
    right = predict(inputs={"image": IMAGE})
    for request in (right, right):
        stubs.prediction.Predict(request)
    refused(stubs.prediction.Predict, predict())
    for name in ("one", "two", "three"):  # names that clients make up share one line
        refused(stubs.prediction.Predict, predict(name))
    with httpx.Client(base_url=measured.rest_url) as rest:
        body = {"signature_name": "regress", "examples": [{"x": 1.5}]}
        assert rest.post("/v1/models/toy:regress", json=body).status_code == 200
        assert rest.post("/v1/models/toy:predict", json={}).status_code == 400
        assert rest.get("/monitoring/prometheus/metrics").status_code == 404
        answer = rest.get("/metrics")
    stubs.channel.close()
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.text.splitlines()
    assert [line for line in lines if not LINE.fullmatch(line)] == []
    counts = [line for line in lines if line.startswith(":tensorflow:serving:request_count")]
    assert counts == [
        ':tensorflow:serving:request_count{model_name="",status="NOT_FOUND"} 3',
        ':tensorflow:serving:request_count{model_name="toy",status="INVALID_ARGUMENT"} 2',
        ':tensorflow:serving:request_count{model_name="toy",status="OK"} 3',
    ]
    for name, labels, number in (
        ("request_latency", 'model_name="toy",API="Predict",entrypoint="GRPC"', 2),
        ("request_latency", 'model_name="toy",API="Regress",entrypoint="REST"', 1),
        ("runtime_latency", 'model_name="toy",API="Predict",runtime="TF1"', 2),
        ("runtime_latency", 'model_name="toy",API="Regress",runtime="TF1"', 1),
        ("model_warmup_latency", f'model_path="{base}/1",status="OK"', 1),
    ):
        assert f":tensorflow:serving:{name}_count{{{labels}}} {number}" in lines


def test_a_file_turns_the_page_off(base, tmp_path):
    (tmp_path / "monitoring.config").write_text("prometheus_config { enable: false }")
    path = str(tmp_path / "monitoring.config")
    with Server(base, monitoring_config_file=path, port=0) as running:
        answer = httpx.get(f"{running.rest_url}/monitoring/prometheus/metrics")
        assert answer.status_code == 404
