import pathlib
import subprocess

import pytest

from keras_unigan.errors import CodedError
from keras_unigan.serving import deploy, server, settings

yaml = pytest.importorskip("yaml")

SHIPPED = pathlib.Path(deploy.__file__).parent


def test_shipped_files_are_what_compose_writes(tmp_path):
    for path in deploy.compose(tmp_path):
        assert path.read_text() == (SHIPPED / path.name).read_text()


def test_compose_file_runs_the_stock_image_with_its_own_flags():
    service = yaml.safe_load((SHIPPED / "docker-compose.yml").read_text())["services"]["unigan"]
    assert service["image"].startswith("tensorflow/serving:")
    assert not service["image"].endswith("latest")
    assert all(volume.endswith(":ro") for volume in service["volumes"])
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    flags = dict(flag.removeprefix("--").split("=") for flag in service["command"])
    assert flags["port"] == "8500"
    assert flags["rest_api_port"] == "8501"
    assert f"./models.config:{flags['model_config_file']}:ro" in service["volumes"]


def test_shipped_models_config_starts_the_embedded_server(tmp_path, base):
    text = (SHIPPED / "models.config").read_text()
    config = tmp_path / "models.config"
    config.write_text(text.replace("/models/unigan", str(base)))
    (model,) = settings.read_models(config)
    assert (model.name, model.policy) == ("unigan", ("latest", 1))
    service = yaml.safe_load((SHIPPED / "docker-compose.yml").read_text())["services"]["unigan"]
    kind, shell, option, script = service["healthcheck"]["test"]
    assert (kind, shell, option) == ("CMD", "bash", "-c")
    with server.Server(model_config_file=str(config)) as running:
        script = script.replace("127.0.0.1/8501", running.rest_url[7:].replace(":", "/"))
        assert subprocess.run([shell, option, script], check=False).returncode == 0
        wrong = script.replace("models/unigan", "models/other")
        assert subprocess.run([shell, option, wrong], check=False).returncode != 0


def test_compose_for_another_model(tmp_path):
    compose, models = deploy.compose(tmp_path, "liver", "/srv/liver", memory_gib=7.5)
    service = yaml.safe_load(compose.read_text())["services"]["liver"]
    assert service["volumes"][0] == "/srv/liver:/models/liver:ro"
    assert service["mem_limit"] == "8g"
    assert 'name: "liver"' in models.read_text()
    with pytest.raises(CodedError, match=r"KUG-E02.*docker-compose\.yml"):
        deploy.compose(tmp_path)


def test_names_that_are_no_paths_are_refused(tmp_path):
    with pytest.raises(CodedError, match="KUG-S06 name: found 'a/b'"):
        deploy.compose(tmp_path, "a/b")
    with pytest.raises(ValueError, match="memory_gib above 0, got 0"):
        deploy.compose(tmp_path, memory_gib=0)
