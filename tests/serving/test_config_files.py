"""TensorFlow Serving's text protos, as its own server reads them."""

import pytest

from keras_unigan.errors import CodedError
from keras_unigan.serving import config_files
from keras_unigan.serving.settings import Options


def write(tmp_path, text):
    path = tmp_path / "some.config"
    path.write_text(text)
    return path


def test_batching(tmp_path):
    path = write(
        tmp_path,
        "max_batch_size { value: 4 } batch_timeout_micros { value: 5000 }\n"
        "max_enqueued_batches { value: 16 } num_batch_threads { value: 2 }\n"
        'thread_pool_name: { value: "p" } allowed_batch_sizes: 2 allowed_batch_sizes: 4',
    )
    assert config_files.read_batching(path) == config_files.Batching(4, 5000, 16, 2, "p", (2, 4))
    assert config_files.read_batching("").max_batch_size == 1000
    assert config_files.read_batching(write(tmp_path, "")) == config_files.Batching()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pad_variable_length_inputs: true", "only images of the same shape share a batch"),
        ("max_batch_size { value: 0 }", "found max_batch_size 0, expected 1 or more"),
        ("batch_timeout_micros { value: -1 }", "expected 0 or more"),
        ("allowed_batch_sizes: 2", r"allowed_batch_sizes \[2\], expected increasing sizes"),
        (
            "max_batch_size { value: 4 } allowed_batch_sizes: 4 allowed_batch_sizes: 4",
            "increasing sizes that end with max_batch_size, 4",
        ),
        ("zz: 1", "Error parsing text-format tensorflow.serving.BatchingParameters: line 1"),
    ],
)
def test_batching_that_is_refused(tmp_path, text, expected):
    with pytest.raises(CodedError, match=expected) as caught:
        config_files.read_batching(write(tmp_path, text))
    assert caught.value.code == "KUG-S06"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('prometheus_config { enable: true path: "/metrics" }', "/metrics"),
        ("prometheus_config: { enable: true }", "/monitoring/prometheus/metrics"),
        ('prometheus_config { path: "/metrics" }', ""),
    ],
)
def test_monitoring(tmp_path, text, path):
    assert config_files.read_monitoring(write(tmp_path, text)) == path
    assert config_files.read_monitoring("") == "/monitoring/prometheus/metrics"


def test_monitoring_needs_a_path(tmp_path):
    with pytest.raises(CodedError, match="a path that begins with '/'"):
        config_files.read_monitoring(
            write(tmp_path, 'prometheus_config { enable: true path: "metrics" }')
        )


PEM = "-----BEGIN X-----\nabc\n-----END X-----\n"


def test_pem_texts_may_run_over_lines_or_be_escaped(tmp_path):
    escaped = PEM.replace("\n", "\\n")
    text = f"# it's a key\nserver_key: \"{PEM}\"\nserver_cert: '{escaped}' client_verify: false"
    found = config_files.read_ssl(write(tmp_path, text))
    assert (found.key, found.certificate, found.client_verify) == (PEM, PEM, False)
    assert "abc" not in repr(found).replace(repr(PEM), "", 1)
    assert config_files.read_ssl("") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f'server_key: "{PEM}"', "no PEM text in server_cert"),
        (f'server_key: "/etc/key.pem" server_cert: "{PEM}"', "no PEM text in server_key"),
        (
            f'server_key: "{PEM}" server_cert: "{PEM}" client_verify: true',
            "no PEM text in custom_ca",
        ),
        (f'server_key: "{PEM}', "Error parsing text-format tensorflow.serving.SSLConfig"),
    ],
)
def test_tls_files_that_are_refused_are_not_quoted(tmp_path, text, expected):
    with pytest.raises(CodedError, match=expected) as caught:
        config_files.read_ssl(write(tmp_path, text))
    assert "abc" not in str(caught.value)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(CodedError, match=r"no such file.*--monitoring_config_file"):
        config_files.read_monitoring(tmp_path / "no")
    (tmp_path / "binary").write_bytes(b"\xff")
    with pytest.raises(CodedError, match="not UTF-8"):
        config_files.read_monitoring(tmp_path / "binary")


def test_flags_that_need_each_other():
    with pytest.raises(CodedError, match="add --enable_batching"):
        Options.parse(["x", "--batching_parameters_file", "b"])
    with pytest.raises(CodedError, match="without model_config_file"):
        Options.parse(["x", "--model_config_file_poll_wait_seconds", "1"])
    with pytest.raises(CodedError, match="max_concurrent_requests: found 0, expected 1 or more"):
        Options.parse(["x", "--max_concurrent_requests", "0"])
