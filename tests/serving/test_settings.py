import pytest

from keras_unigan.errors import CodedError
from keras_unigan.serving import config_files, settings


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "unigan").mkdir()
    return str(tmp_path / "unigan")


def test_flags_have_tensorflow_serving_s_names_and_defaults(folder):
    options = settings.Options.parse([folder])
    assert (options.port, options.rest_api_port, options.host) == (8500, 0, "127.0.0.1")
    assert options.models() == (config_files.ModelConfig("unigan", folder),)
    options = settings.Options.parse(
        [
            *("--port=1", "--rest_api_port", "2", "--enable_model_warmup=false"),
            *("--model_name", "a", "--enable_serialization_as_tensor_content"),
            *("--model_base_path", folder),
        ]
    )
    assert (options.port, options.rest_api_port) == (1, 2)
    assert not options.enable_model_warmup
    assert options.enable_serialization_as_tensor_content
    assert options.models()[0].name == "a"
    assert "--max_num_load_retries" in settings.parser().format_help()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["x", "--prot", "1"], r"'--prot' \(did you mean '--port'\?\)"),
        (["x", "y"], "found 'y', expected a known flag"),
        (["x", "--port", "one"], "invalid int value: 'one'"),
        (["x", "--enable_model_warmup=maybe"], "'maybe' is neither true nor false"),
        (["x", "--port", "-1"], "--port: found -1, expected 0 or more"),
        (["x", "--file_system_poll_wait_seconds", "-1"], "0 or more"),
        ([], "both or neither of model_base_path and model_config_file"),
    ],
)
def test_wrong_flags_are_named(flags, text):
    with pytest.raises(CodedError, match=text) as caught:
        settings.Options.parse(flags)
    assert (caught.value.code, caught.value.exit_code) == ("KUG-S06", 4)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(CodedError, match=r"no such folder.*unigan export RUN"):
        settings.Options.parse([str(tmp_path / "no")]).models()


def read(tmp_path, text):
    (tmp_path / "models.config").write_text(text)
    return config_files.read_models(tmp_path / "models.config")


def test_model_config_file(tmp_path, folder):
    entry = f'config {{ name: "%s" base_path: "{folder}" model_platform: "tensorflow" %s }}'
    policies = {
        "one": "",
        "two": "model_version_policy { latest { num_versions: 2 } }",
        "all": "model_version_policy { all {} }",
        "canary": "model_version_policy { specific { versions: 42 versions: 43 } } "
        'version_labels { key: "stable" value: 42 }',
    }
    entries = " ".join(entry % item for item in policies.items())
    found = read(tmp_path, f"model_config_list {{ {entries} }}")
    assert [(m.name, m.policy) for m in found] == [
        ("one", ("latest", 1)),
        ("two", ("latest", 2)),
        ("all", ("all",)),
        ("canary", ("specific", (42, 43))),
    ]
    assert found[3].labels == {"stable": 42}


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("nonsense", "Error parsing text-format tensorflow.serving.ModelServerConfig"),
        ("model_config_list {}", "found no model"),
        (
            'model_config_list { config { name: "a" base_path: "b" model_platform: "jax" } }',
            r"Expected model a to have an absolute path or URI; got base_path\(\)=b",
        ),
        (
            'model_config_list { config { name: "a" base_path: "/" } }',
            r"neither ModelServerConfig::model_type \(deprecated\) nor "
            "ModelServerConfig::model_platform, model name is a",
        ),
        (
            'model_config_list { config { name: "a" base_path: "/" model_platform: "jax" } }',
            "model_platform 'jax'",
        ),
        (
            "model_config_list {"
            + 'config { name: "a" base_path: "/" model_platform: "tensorflow" }' * 2
            + "}",
            "Illegal to list model a multiple times in config list",
        ),
    ],
)
def test_bad_config_files_are_refused(tmp_path, entry, text):
    with pytest.raises(CodedError, match=text) as caught:
        read(tmp_path, entry)
    assert caught.value.code == "KUG-S06"


def test_a_missing_config_file_is_named(tmp_path):
    with pytest.raises(CodedError, match="no such file"):
        config_files.read_models(tmp_path / "no.config")
