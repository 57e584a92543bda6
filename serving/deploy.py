"""Files that run a model under the stock TensorFlow Serving image.

The compose file and `models.config` beside this module are what `compose` writes for a model called
"unigan"; the embedded server reads the same `models.config`.
"""

import math
from pathlib import Path

from keras_unigan.errors import CodedError

IMAGE = "tensorflow/serving:2.19.1"

_MODELS = """\
model_config_list {{
  config {{
    name: "{name}"
    base_path: "/models/{name}"
    model_platform: "tensorflow"
    model_version_policy {{ latest {{ num_versions: 1 }} }}
  }}
}}
"""

# The image has neither curl nor wget; bash can open a socket itself.
_COMPOSE = """\
services:
  {name}:
    image: {image}
    entrypoint: ["tensorflow_model_server"]
    command:
      - --port=8500
      - --rest_api_port=8501
      - --model_config_file=/etc/unigan/models.config
      - --model_config_file_poll_wait_seconds=30
      - --rest_api_timeout_in_ms=300000
      - --enable_grpc_healthcheck_service=true
    ports:
      - "127.0.0.1:8500:8500"
      - "127.0.0.1:8501:8501"
    volumes:
      - {models}:/models/{name}:ro
      - ./models.config:/etc/unigan/models.config:ro
    read_only: true
    tmpfs: [/tmp]
    mem_limit: {memory}g
    restart: unless-stopped
    healthcheck:
      test:
        - CMD
        - bash
        - -c
        - >-
          exec 3<>/dev/tcp/127.0.0.1/8501
          && printf 'GET /v1/models/{name} HTTP/1.0\\r\\n\\r\\n' >&3
          && grep -q AVAILABLE <&3
      interval: 10s
      timeout: 5s
      start_period: 120s
"""


def compose(folder, name="unigan", models="./models/unigan", memory_gib=4):
    """Writes `docker-compose.yml` and `models.config` for the stock image.

    The server listens on this machine only: before others may ask it, put a proxy with TLS and a
    token in front.

    Args:
        folder: Where to; existing files of these names are refused.
        name: Name of the model.
        models: Model folder on the host, as seen from `folder`; mounted read-only.
        memory_gib: Memory limit; at least twice the model and the largest request.

    Returns:
        Paths written.

    Raises:
        CodedError: KUG-E02 when a file is there already, KUG-S06 for a name that no path can hold.
    """
    if not name or not all(c.isalnum() or c in "-_." for c in name):
        raise CodedError("KUG-S06", "name", repr(name), "letters, digits, '-', '_' and '.'")
    if not memory_gib > 0:
        raise ValueError(f"Expected memory_gib above 0, got {memory_gib}.")
    folder = Path(folder)
    values = {
        "name": name,
        "image": IMAGE,
        "models": models,
        "memory": math.ceil(memory_gib),
    }
    texts = {"docker-compose.yml": _COMPOSE, "models.config": _MODELS}
    for file in texts:
        if (folder / file).exists():
            raise CodedError("KUG-E02", folder / file, "a file there already", "a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        (folder / file).write_text(text.format(**values), encoding="utf-8")
    return [folder / file for file in texts]
