"""Deploy files: parsed, checked piece by piece, and the same files before the embedded server."""

import pathlib
import re
import subprocess

import numpy as np
import pytest

from keras_unigan import cli
from keras_unigan.errors import CodedError
from keras_unigan.serving import config_files, deploy, server, settings
from keras_unigan.serving.client import Client

yaml = pytest.importorskip("yaml")

SHIPPED = pathlib.Path(deploy.__file__).parent


def read(path):
    return yaml.safe_load(pathlib.Path(path).read_text(encoding="utf-8"))


@pytest.fixture
def documents(tmp_path):
    """Kind -> object of `unigan deploy kubernetes`."""
    (path,) = deploy.kubernetes(tmp_path / "k8s", "liver", replicas=2)
    return {d["kind"]: d for d in yaml.safe_load_all(path.read_text(encoding="utf-8"))}


def flags_of(arguments):
    """Flag -> value; each is one that the embedded server knows too."""
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in arguments)
    known = {a.dest for a in settings.parser()._actions}
    assert set(flags) <= known
    return flags


def test_shipped_files_are_what_compose_writes(tmp_path):
    for path in deploy.compose(tmp_path):
        assert path.read_text() == (SHIPPED / path.name).read_text()


def test_compose_runs_the_stock_image_with_its_own_flags():
    services = read(SHIPPED / "docker-compose.yml")["services"]
    assert set(services) == {"server", "proxy"}
    service = services["server"]
    assert re.fullmatch(r"tensorflow/serving:\d+\.\d+\.\d+", service["image"])
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    models, *files = service["volumes"]
    assert models == {
        "type": "bind",
        "source": "./models/unigan",
        "target": "/models/unigan",
        "read_only": True,
    }
    assert all(volume.endswith(":ro") for volume in files)
    flags = flags_of(service["command"])
    assert (flags["port"], flags["rest_api_port"]) == ("8500", "8501")
    assert flags["rest_api_timeout_in_ms"] == "300000"
    assert "enable_batching" not in flags
    for name in ("models", "monitoring"):
        path = flags[{"models": "model_config_file"}.get(name, f"{name}_config_file")]
        assert f"./{name}.config:{path}:ro" in files
    assert service["read_only"]
    assert service["user"] == "1000:1000"
    assert "latest" not in service["image"] + services["proxy"]["image"]
    # The proxy is for clients elsewhere, and only where it is asked for.
    assert services["proxy"]["profiles"] == ["tls"]
    assert "profiles" not in service


def test_compose_for_another_model(tmp_path):
    paths = deploy.compose(
        tmp_path, "Liver_v2", '/srv/a "b": $c/Liver_v2', memory_gib=7.5, batching=True
    )
    service = read(paths[0])["services"]["server"]
    assert service["volumes"][0]["source"] == '/srv/a "b": $$c/Liver_v2'
    assert service["volumes"][0]["target"] == "/models/Liver_v2"
    assert service["mem_limit"] == "8g"
    flags = flags_of(service["command"])
    assert flags["enable_batching"] == "true"
    assert f"./batching.config:{flags['batching_parameters_file']}:ro" in service["volumes"]
    assert 'name: "Liver_v2"' in paths[1].read_text()
    assert "GET /v1/models/Liver_v2 " in service["healthcheck"]["test"][-1]
    with pytest.raises(CodedError, match=r"KUG-E02.*docker-compose\.yml"):
        deploy.compose(tmp_path)


def test_memory_holds_two_copies_of_the_newest_version(tmp_path):
    base = tmp_path / "big"
    for version, size in (("3", 2**30), ("12", 3 * 2**30)):
        (base / version).mkdir(parents=True)
        with open(base / version / "variables", "wb") as file:
            file.truncate(size)  # a hole: nothing is written
    assert deploy.memory_for(base) == 8
    assert deploy.memory_for(None) == deploy.memory_for(tmp_path / "nowhere") == 4
    service = read(deploy.compose(tmp_path / "a", "big", base)[0])["services"]["server"]
    assert service["mem_limit"] == "8g"


def blocks(text):
    """Nginx directives as nested lists: [words] or [words, block]."""
    tokens = re.findall(r"#[^\n]*|'[^']*'|\"[^\"]*\"|[{};]|[^\s{};]+", text)
    stack, words = [[]], []
    for token in (t for t in tokens if not t.startswith("#")):
        if token == "{":
            block = []
            stack[-1].append([words, block])
            stack.append(block)
            words = []
        elif token == "}":
            assert not words
            stack.pop()
        elif token == ";":
            stack[-1].append([words])
            words = []
        else:
            words.append(token)
    assert len(stack) == 1
    assert not words
    return stack[0]


def find(block, *words):
    return [d for d in block if d[0][: len(words)] == list(words)]


def test_nginx_asks_for_tls_and_a_token_and_refuses_reloads():
    (http,) = find(blocks((SHIPPED / "nginx.conf").read_text()), "http")
    servers = [s[1] for s in find(http[1], "server")]
    assert [find(s, "listen")[0][0][1:] for s in servers] == [["8443", "ssl"], ["9443", "ssl"]]
    (known,) = find(http[1], "map")
    assert known[0] == ["map", "$http_authorization", "$known_token"]
    assert find(known[1], "default") == [[["default", "0"]]]
    passes = []
    for block in servers:
        for _, location in find(block, "location"):
            sends = find(location, "proxy_pass") + find(location, "grpc_pass")
            if sends:
                (refuse,) = find(location, "if")
                assert refuse == [["if", "($known_token", "=", "0)"], [[["return", "401"]]]]
                passes.append(sends[0][0])
    assert passes == [
        ["proxy_pass", "http://server:8501"],
        ["grpc_pass", "grpc://server:8500"],
    ]
    reload = "/tensorflow.serving.ModelService/HandleReloadConfigRequest"
    (closed,) = find(servers[1], "location", "=", reload)
    assert closed[1] == [[["return", "403"]]]
    mounts = read(SHIPPED / "docker-compose.yml")["services"]["proxy"]["volumes"]
    assert "./tls:/etc/nginx/tls:ro" in mounts
    for directive in ("ssl_certificate", "ssl_certificate_key"):
        assert find(http[1], directive)[0][0][1].startswith("/etc/nginx/tls/")


def test_the_same_files_start_the_embedded_server(tmp_path, base):
    files = {p.name: p for p in deploy.compose(tmp_path / "files", "toy", str(base), batching=True)}
    models = files["models.config"]
    models.write_text(models.read_text().replace("/models/toy", str(base)))
    service = read(files["docker-compose.yml"])["services"]["server"]
    arguments = [a.replace("/etc/unigan", str(tmp_path / "files")) for a in service["command"]]
    options = vars(settings.Options.parse(arguments))
    with server.Server(**{**options, "port": None, "rest_api_port": None}) as running:
        # The health check of the container is a script of the shell: here it runs.
        kind, shell, option, script = service["healthcheck"]["test"]
        assert (kind, shell, option) == ("CMD", "bash", "-c")
        script = script.replace("127.0.0.1/8501", running.rest_url[7:].replace(":", "/"))
        assert subprocess.run([shell, option, script], check=False).returncode == 0
        wrong = script.replace("models/toy", "models/other")
        assert subprocess.run([shell, option, wrong], check=False).returncode != 0
        # The page counts from the first request on.
        with Client(running.grpc_addr, "toy") as client:
            client.predict(np.ones((1, 2, 2, 1), np.float32))
        page = config_files.read_monitoring(options["monitoring_config_file"])
        asked = subprocess.run(
            ["bash", "-c", script.replace("/v1/models/toy", page).replace("AVAILABLE", "TYPE")],
            check=False,
        )
        assert asked.returncode == 0
    batching = config_files.read_batching(options["batching_parameters_file"])
    assert (batching.max_batch_size, batching.num_batch_threads) == (4, 2)


def test_kubernetes_objects_fit_together(documents):
    assert set(documents) == {"ConfigMap", "Deployment", "Service", "NetworkPolicy"}
    deployment = documents["Deployment"]
    assert deployment["apiVersion"] == "apps/v1"
    assert deployment["spec"]["replicas"] == 2
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert documents["Service"]["spec"]["selector"].items() <= labels.items()
    policy = documents["NetworkPolicy"]["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    pod = deployment["spec"]["template"]["spec"]
    containers = {c["name"]: c for c in pod["containers"]}
    ports = {p["name"]: p["containerPort"] for c in containers.values() for p in c["ports"]}
    assert ports == {"grpc": 8500, "rest": 8501, "https": 8443, "grpcs": 9443}
    offered = {p["targetPort"] for p in documents["Service"]["spec"]["ports"]}
    assert offered == {"https", "grpcs"}
    # Other pods reach what the service offers, and not the server behind the proxy.
    reached = {p["port"] for rule in policy["ingress"] for p in rule["ports"]}
    assert reached == {ports[name] for name in offered}
    volumes = {v["name"]: v for v in pod["volumes"]}
    for container in containers.values():
        assert {m["name"] for m in container["volumeMounts"]} <= set(volumes)
        assert set(container["resources"]["limits"]) == {"memory"}
        locked = container["securityContext"]
        assert locked["readOnlyRootFilesystem"]
        assert not locked["allowPrivilegeEscalation"]
        assert locked["capabilities"] == {"drop": ["ALL"]}
    assert pod["securityContext"]["runAsNonRoot"]
    assert volumes["models"]["persistentVolumeClaim"] == {
        "claimName": "liver-models",
        "readOnly": True,
    }
    assert volumes["config"]["configMap"]["name"] == documents["ConfigMap"]["metadata"]["name"]
    assert {volumes[v]["secret"]["secretName"] for v in ("tls", "tokens")} == {
        "liver-tls",
        "liver-tokens",
    }


def test_kubernetes_probes_and_flags(documents, tmp_path):
    pod = documents["Deployment"]["spec"]["template"]["spec"]
    container = next(c for c in pod["containers"] if c["name"] == "server")
    ready = container["readinessProbe"]["httpGet"]
    assert ready == {"path": "/v1/models/liver", "port": "rest"}
    assert container["startupProbe"]["httpGet"] == ready
    assert container["livenessProbe"]["tcpSocket"] == {"port": "grpc"}
    assert container["image"] == deploy.IMAGE
    flags = flags_of(container["args"])
    data = documents["ConfigMap"]["data"]
    (mount,) = (m for m in container["volumeMounts"] if m["name"] == "config")
    files = {v for k, v in flags.items() if k.endswith("_config_file")}
    assert files == {f"{mount['mountPath']}/{n}.config" for n in ("models", "monitoring")}
    # What the map holds are the files of the compose kind, and they parse.
    for path in deploy.compose(tmp_path / "compose", "liver"):
        if path.suffix == ".config":
            assert data[path.name] == path.read_text()
    assert "grpc_pass grpc://127.0.0.1:8500;" in data["nginx.conf"]
    blocks(data["nginx.conf"])


def test_kserve_service(tmp_path):
    (path,) = deploy.kserve(tmp_path, "liver", claim="disk", memory_gib=6, replicas=3)
    service = read(path)
    assert (service["apiVersion"], service["kind"]) == (
        "serving.kserve.io/v1beta1",
        "InferenceService",
    )
    predictor = service["spec"]["predictor"]
    assert predictor["minReplicas"] == 3
    model = predictor["model"]
    assert model["modelFormat"] == {"name": "tensorflow"}
    assert model["runtimeVersion"] == deploy.VERSION
    assert model["storageUri"] == "pvc://disk/liver"
    assert sorted(p["containerPort"] for p in model["ports"]) == [8080, 9000]
    assert flags_of(model["args"])["rest_api_timeout_in_ms"] == "300000"
    assert model["resources"]["limits"]["memory"] == "6Gi"


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(CodedError, match="KUG-S06 name: found 'a/b'"):
        deploy.compose(tmp_path, "a/b")
    with pytest.raises(CodedError, match="KUG-S06 name: found 'Liver_v2', expected lower-case"):
        deploy.kubernetes(tmp_path, "Liver_v2")
    with pytest.raises(CodedError, match="KUG-S06 claim: found 'a b'"):
        deploy.kserve(tmp_path, "liver", claim="a b")
    with pytest.raises(ValueError, match="memory_gib above 0, got 0"):
        deploy.compose(tmp_path, memory_gib=0)
    with pytest.raises(ValueError, match="replicas of 1 or more, got 0"):
        deploy.kserve(tmp_path, replicas=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["kubernetes", "--models", "m/liver"], 0, "kubectl apply -f"),
        (["kserve", "--name", "liver", "--claim", "disk"], 0, "inferenceservice.yaml"),
        (["compose", "--models", "m/liver"], 0, "docker compose -f"),
        (["compose", "--name", "liver"], 2, "KUG-T02 --models"),
        (["compose", "--models", "m", "--claim", "c"], 2, "KUG-T02 --claim"),
        (["kserve", "--name", "a", "--batching"], 2, "KUG-T02 --batching"),
        (["composer", "--name", "a"], 2, "did you mean 'compose'?"),
    ],
)
def test_command(tmp_path, capsys, arguments, code, said):
    with pytest.raises(SystemExit) as stop:
        cli.main(["deploy", *arguments, "-o", str(tmp_path / "out")])
    assert (stop.value.code or 0) == code
    captured = capsys.readouterr()
    assert said in captured.out + captured.err
    assert (tmp_path / "out").exists() == (code == 0)
