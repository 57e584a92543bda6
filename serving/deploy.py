"""Files that run a model under the stock TensorFlow Serving image, with a proxy for TLS and tokens.

The compose files beside this module are what `compose` writes for a model called "unigan"; the
embedded server reads the same model, batching and monitoring files.
"""

import json
import math
import re
from pathlib import Path

from keras_unigan.errors import CodedError
from keras_unigan.serving import deploy_texts as texts
from keras_unigan.serving import folders

VERSION = "2.19.1"
IMAGE = f"tensorflow/serving:{VERSION}"
PROXY_IMAGE = "nginxinc/nginx-unprivileged:1.27-alpine"
KINDS = ("compose", "kubernetes", "kserve")

_LEAST_GIB = 4
_ROOM_GIB = 2
"""Memory for requests and TensorFlow itself, besides two copies of the model during a swap."""
_NAME = (re.compile(r"[\w.-]{1,100}", re.ASCII), "letters, digits, '-', '_' and '.'")
_OBJECT = (
    re.compile(r"[a-z]([-a-z0-9]{0,50}[a-z0-9])?"),
    "lower-case letters, digits and '-' inside, at most 52",
)
_PROXY_MIB = 2047
_CONFIG = "/etc/unigan"
_SERVER_FLAGS = (
    "--port=8500",
    "--rest_api_port=8501",
    f"--model_config_file={_CONFIG}/models.config",
    "--model_config_file_poll_wait_seconds=30",
    f"--monitoring_config_file={_CONFIG}/monitoring.config",
    "--rest_api_timeout_in_ms=300000",
    "--enable_grpc_healthcheck_service=true",
)
_BATCHING_FLAGS = (
    "--enable_batching=true",
    f"--batching_parameters_file={_CONFIG}/batching.config",
)
_KSERVE_FLAGS = ("--rest_api_timeout_in_ms=300000", "--enable_grpc_healthcheck_service=true")


def compose(folder, name="unigan", models="./models/unigan", memory_gib=None, batching=False):
    """Writes `docker-compose.yml` and the files it mounts.

    The model server listens on this machine only; the profile "tls" adds nginx, which asks clients
    from elsewhere for a token.

    Args:
        folder: Where to; existing files of these names are refused.
        name: Name of the model.
        models: Model folder on the host, as seen from `folder`; mounted read-only.
        memory_gib: Memory limit; None: see `memory_for`.
        batching: Whether the server puts requests of the same shapes together.

    Returns:
        Paths written.

    Raises:
        CodedError: KUG-E02 when a file is there already, KUG-S06 for a name that no path or object
            can have.
    """
    values = _values(name, memory_gib, Path(folder, models), _NAME)
    # JSON is YAML; Compose takes "$" for the start of a variable.
    values["MODELS"] = json.dumps(str(models).replace("$", "$$"))
    values["FLAGS"] = _flags(_SERVER_FLAGS + _BATCHING_FLAGS * batching, 6)
    values["UPSTREAM"] = "server"
    files = {
        "docker-compose.yml": texts.COMPOSE,
        "models.config": texts.MODELS,
        "batching.config": texts.BATCHING,
        "monitoring.config": texts.MONITORING,
        "nginx.conf": texts.NGINX,
    }
    return _write(folder, {file: _fill(text, values) for file, text in files.items()})


def kubernetes(
    folder,
    name="unigan",
    models=None,
    memory_gib=None,
    batching=False,
    claim=None,
    replicas=1,
):
    """Writes `kubernetes.yaml`: ConfigMap, Deployment with probes, Service, NetworkPolicy.

    Each pod holds the model server and nginx with TLS and tokens; other pods reach nginx only.

    Args:
        folder: Where to.
        name: Name of the model, and of all objects.
        models: Model folder on this machine, for the size of its versions; None: not known.
        memory_gib: Memory of a server; None: see `memory_for`.
        batching: Whether the server puts requests of the same shapes together.
        claim: Volume claim whose folder `name` holds the versions; None: `NAME-models`.
        replicas: Pods.

    Returns:
        Paths written.

    Raises:
        CodedError: As `compose`.
        ValueError: For less than one replica.
    """
    values = _cluster_values(name, memory_gib, models, claim, replicas)
    values["UPSTREAM"] = "127.0.0.1"
    values["FLAGS"] = _flags(_SERVER_FLAGS + _BATCHING_FLAGS * batching, 12)
    for key, text in (
        ("MODELS_CONFIG", texts.MODELS),
        ("BATCHING_CONFIG", texts.BATCHING),
        ("MONITORING_CONFIG", texts.MONITORING),
        ("NGINX_CONF", texts.NGINX),
    ):
        values[key] = _indented(_fill(text, values), 4)
    return _write(folder, {"kubernetes.yaml": _fill(texts.KUBERNETES, values)})


def kserve(folder, name="unigan", models=None, memory_gib=None, claim=None, replicas=1):
    """Writes `inferenceservice.yaml` for KServe's TensorFlow runtime; see `kubernetes`."""
    values = _cluster_values(name, memory_gib, models, claim, replicas)
    values["RUNTIME_VERSION"] = VERSION
    values["FLAGS"] = _flags(_KSERVE_FLAGS, 8)
    return _write(folder, {"inferenceservice.yaml": _fill(texts.KSERVE, values)})


def memory_for(models):
    """Memory of a server in GiB: two copies of the newest version, as in a swap, and some room.

    Args:
        models: Model folder; None, or one that is not here, gives 4.
    """
    found = folders.scan(models) if models is not None and Path(models).is_dir() else {}
    if not found:
        return _LEAST_GIB
    newest = Path(found[max(found)])
    size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    return max(_LEAST_GIB, math.ceil(2 * size / 2**30) + _ROOM_GIB)


def _cluster_values(name, memory_gib, models, claim, replicas):
    if replicas < 1:
        raise ValueError(f"Expected replicas of 1 or more, got {replicas}.")
    values = _values(name, memory_gib, models, _OBJECT)
    values["CLAIM"] = _checked("claim", claim or f"{name}-models", _OBJECT)
    values["REPLICAS"] = str(replicas)
    return values


def _values(name, memory_gib, models, kind):
    memory = memory_for(models) if memory_gib is None else memory_gib
    if not memory > 0:
        raise ValueError(f"Expected memory_gib above 0, got {memory}.")
    return {
        "NAME": _checked("name", name, kind),
        "IMAGE": IMAGE,
        "PROXY_IMAGE": PROXY_IMAGE,
        "MEMORY": str(math.ceil(memory)),
        "MAX_MIB": str(_PROXY_MIB),
    }


def _checked(what, name, kind):
    pattern, words = kind
    if not pattern.fullmatch(str(name)):
        raise CodedError("KUG-S06", what, repr(name), words, fix="give another --name")
    return name


def _flags(flags, indent):
    return "\n".join(f"{' ' * indent}- {flag}" for flag in flags)


def _indented(text, indent):
    lines = text.rstrip("\n").split("\n")
    return "\n".join(f"{' ' * indent}{line}" if line else "" for line in lines)


def _fill(text, values):
    return re.sub(r"@([A-Z_]+)@", lambda found: values[found[1]], text)


def _write(folder, files):
    folder = Path(folder)
    for file in files:
        if (folder / file).exists():
            raise CodedError("KUG-E02", folder / file, "a file there already", "a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    return [folder / file for file in files]
