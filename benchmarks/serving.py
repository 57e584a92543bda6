"""Times round trips through the embedded server against direct calls; one JSON line.

The model is the identity, so that what is measured is transport, parsing and the answer's encoding.
`cpu` is the processor time of client and server together, which other work on the machine changes
less than the clock's.
"""

import argparse
import json
import statistics
import tempfile
import time
import urllib.request

import numpy as np
import tensorflow as tf

from keras_unigan.serving import push
from keras_unigan.serving.client import Client
from keras_unigan.serving.server import Server


class Identity(tf.Module):
    """Gives back what it gets."""

    @tf.function(input_signature=[tf.TensorSpec(None, tf.float32, name="image")])
    def serve(self, image):
        return {"image": tf.identity(image)}


def spread(seconds):
    """Minimum, median and maximum in milliseconds."""
    values = (min(seconds), statistics.median(seconds), max(seconds))
    return [round(1000 * v, 2) for v in values]


def rest(url, image, count):
    """Round trips of an image as JSON, in seconds."""
    body = json.dumps({"instances": image.round(3).tolist()}).encode()
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        with urllib.request.urlopen(f"{url}/v1/models/identity:predict", body) as answer:
            json.load(answer)
        seconds.append(time.perf_counter() - start)
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    result = {"benchmark": "serving", "unit": "ms (min, median, max)"}
    with tempfile.TemporaryDirectory() as folder:
        module = Identity()
        tf.saved_model.save(module, f"{folder}/source", {"serving_default": module.serve})
        push.publish(f"{folder}/source", f"{folder}/models/identity")
        for contents in (True, False):
            options = {"enable_serialization_as_tensor_content": contents}
            with Server(model_base_path=f"{folder}/models/identity", **options) as server:
                client = Client(server.grpc_addr, "identity")
                for shape, count in (((1, 256, 256, 1), repeats), ((155, 240, 240, 1), 5)):
                    image = np.random.default_rng(0).random(shape, "float32")
                    seconds, direct, cpu = [], [], []
                    for _ in range(count + 2):
                        start, used = time.perf_counter(), time.process_time()
                        answer = client.predict({"image": image})
                        seconds.append(time.perf_counter() - start)
                        cpu.append(time.process_time() - used)
                        start = time.perf_counter()
                        module.serve(tf.constant(image))["image"].numpy()
                        direct.append(time.perf_counter() - start)
                    np.testing.assert_array_equal(answer["image"], image)
                    kind = "tensor_content" if contents else "float_val"
                    name = f"{'x'.join(map(str, shape))} {kind}"
                    result[name] = {
                        "grpc": spread(seconds[2:]),
                        "cpu": spread(cpu[2:]),
                        "direct": spread(direct[2:]),
                    }
                small = np.random.default_rng(0).random((1, 256, 256, 1), "float32")
                result["1x256x256x1 JSON"] = {"rest": spread(rest(server.rest_url, small, 5))}
                client.close()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
