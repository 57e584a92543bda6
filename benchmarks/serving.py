"""Times gRPC round trips through the embedded server against direct calls; one JSON line.

The model is the identity, so that what is measured is transport, parsing and the answer's encoding.
"""

import argparse
import json
import statistics
import tempfile
import time

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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    result = {"benchmark": "serving", "unit": "ms (min, median, max)"}
    with tempfile.TemporaryDirectory() as folder:
        module = Identity()
        tf.saved_model.save(module, f"{folder}/source", {"serving_default": module.serve})
        push.push(f"{folder}/source", f"{folder}/models/identity")
        for contents in (True, False):
            options = {"enable_serialization_as_tensor_content": contents}
            with Server(model_base_path=f"{folder}/models/identity", **options) as server:
                client = Client(server.grpc_addr, "identity")
                for shape, count in (((1, 256, 256, 1), repeats), ((155, 240, 240, 1), 5)):
                    image = np.random.default_rng(0).random(shape, "float32")
                    seconds, direct = [], []
                    for _ in range(count + 2):
                        start = time.perf_counter()
                        answer = client.predict({"image": image})
                        seconds.append(time.perf_counter() - start)
                        start = time.perf_counter()
                        module.serve(tf.constant(image))["image"].numpy()
                        direct.append(time.perf_counter() - start)
                    np.testing.assert_array_equal(answer["image"], image)
                    kind = "tensor_content" if contents else "float_val"
                    name = f"{'x'.join(map(str, shape))} {kind}"
                    result[name] = {"grpc": spread(seconds[2:]), "direct": spread(direct[2:])}
                client.close()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
