"""What a version has to pass before anyone can see it."""

import contextlib
import json
import time

import numpy as np
import tensorflow as tf

from keras_unigan import export
from keras_unigan.errors import CodedError
from keras_unigan.inference import Predictor
from keras_unigan.serving.servable import Servable
from keras_unigan.serving.status import ServingError

TOLERANCE = 1e-5


def infra_check(folder, network, plan):
    """Loads an export as the server does and compares it with the network that it came from.

    Each signature is asked at sizes that the graph never saw; labels must agree wherever the two
    best answers differ by more than the tolerance; requests that do not fit must be refused and
    leave the next one unharmed.

    Args:
        folder: SavedModel folder.
        network: Segmentor that was exported.
        plan: Its plan.

    Returns:
        Report: `passed` True, `checks` (name -> largest difference, or what refused it), `requests`
        answered as warm-up, `load_seconds`, `patch_seconds`.

    Raises:
        CodedError: KUG-S05 naming the first check that failed.
    """
    network = export.full_precision(network)
    started = time.perf_counter()
    try:
        servable = Servable(folder, use_gpu=False)
    except ServingError as error:
        raise _failed(network, "load", str(error), "a SavedModel that loads") from None
    try:
        report = {"load_seconds": round(time.perf_counter() - started, 2), "checks": {}}
        report["requests"] = servable.warm_up()
        asked = servable.predict("describe", {"request": np.zeros(1, np.int64)})
        multiples = tuple(json.loads(asked["model_card"][0])["side_multiples"])
        _compare(servable, network, plan, multiples, report["checks"])
        _refuse(servable, network, plan, multiples, report["checks"])
        patch = export.example_inputs(network, plan)["segment"]
        started = time.perf_counter()
        servable.predict("segment", patch)
        report["patch_seconds"] = round(time.perf_counter() - started, 3)
    except ServingError as error:
        raise _failed(network, "requests", str(error), "an answer to every good request") from None
    finally:
        servable.close()
    return {"passed": True, **report}


@contextlib.contextmanager
def _eager_on_cpu():
    """Runs the reference op by op on the CPU, as the served graph runs there.

    GPUs choose other kernels, with less precise products, from one graph to the next.
    """
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        with tf.device("/CPU:0"):
            yield
    finally:
        tf.config.run_functions_eagerly(before)


def _compare(servable, network, plan, multiples, checks):
    dims = network.spatial_dims
    reference = export.serving_function(network, plan, multiples)
    patch = plan.configuration(dims).patch_size
    odd = tuple(2 * m + 3 for m in multiples)
    for sides in (patch, odd, (1,) * dims):
        requests = export.example_inputs(network, plan, sides)
        image = requests["segment"]["image"]
        statistics = requests["segment"]["statistics"]
        for signature, domain, rows in (
            ("serving_default", -1, np.zeros_like(statistics)),
            ("segment", 0, statistics),
        ):
            served = servable.predict(signature, requests[signature])
            with _eager_on_cpu():
                direct = reference(
                    tf.constant(image), tf.constant([domain], tf.int32), tf.constant(rows)
                )
            name = f"{signature} {'x'.join(map(str, sides))}"
            _same(network, name, served, direct["probabilities"].numpy(), plan, checks)
    requests = export.example_inputs(network, plan)
    inputs = requests["segment"]
    served = servable.predict("segment", inputs)
    with _eager_on_cpu():
        predict = Predictor(network, plan)
        local = predict(inputs["image"], plan.modalities[0], inputs["statistics"])
    _same(network, "segment against local prediction", served, local, plan, checks)


def _same(network, name, served, probabilities, plan, checks):
    """Compares an answer with the probabilities of the network."""
    found = served["probabilities"]
    if found.shape != probabilities.shape or found.dtype != np.float32:
        raise _failed(
            network, name, f"{found.dtype} {found.shape}", f"float32 {probabilities.shape}"
        )
    difference = float(np.abs(found - probabilities).max())
    if not difference <= TOLERANCE:
        raise _failed(
            network,
            name,
            f"probabilities that differ by {difference:.2g}",
            f"at most {TOLERANCE:g}",
        )
    if plan.labels.overlapping:
        label_map = np.zeros(probabilities.shape[:-1], np.uint8)
        for index in range(probabilities.shape[-1]):
            label_map[probabilities[..., index] > 0.5] = index + 1
        sure = (np.abs(probabilities - 0.5) > TOLERANCE).all(-1)
    else:
        label_map = np.argmax(probabilities, -1).astype(np.uint8)
        best = np.sort(probabilities, -1)
        sure = best[..., -1] - best[..., -2] > TOLERANCE
    wrong = int((sure & (served["label_map"] != label_map)).sum())
    if wrong:
        raise _failed(network, name, f"{wrong} voxels with another label", "the same labels")
    checks[name] = difference


def _refuse(servable, network, plan, multiples, checks):
    """Sends requests that do not fit; each must be refused, and a good one answered after it."""
    good = export.example_inputs(network, plan, multiples)["segment"]
    image, statistics = good["image"], good["statistics"]
    hostile = {
        "wrong rank": {"image": image[0]},
        "wrong type": {"image": image.astype(np.float64)},
        "wrong channels": {"image": np.concatenate([image, image], -1)},
        "no images": {name: array[:0] for name, array in good.items()},
        "NaN": {"image": image * np.nan},
        "wrong statistics": {"statistics": statistics[:, :3]},
        "unknown modality": {"modality": np.array([b"no such modality"], object)},
    }
    expected = servable.predict("segment", good)["probabilities"]
    for name, change in hostile.items():
        try:
            servable.predict("segment", {**good, **change})
        except ServingError as error:
            checks[name] = f"refused: {error.code}"
        else:
            raise _failed(network, name, "an answer", "a refusal")
    after = servable.predict("segment", good)["probabilities"]
    if not np.allclose(after, expected, rtol=0, atol=TOLERANCE):
        raise _failed(network, "after refusals", "another answer", "the same answer as before")


def _failed(network, check, found, expected):
    return CodedError(
        "KUG-S05",
        network.name,
        f"{check}: {found}",
        expected,
        "The version was not published.",
        "export again; if it stays, report the network and the versions",
    )
