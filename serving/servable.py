"""One loaded SavedModel version: its signatures, what it refuses, and how it runs.

It runs as in `tensorflow_model_server`: a session over the graph of the file, fed and fetched by
the tensor names of the signature. What differs is deliberate: shapes are compared with the
signature first (a wrong rank can abort the whole process inside a kernel), and texts of failed
kernels, which may quote the request, never leave this module.
"""

import dataclasses
import os

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from keras_unigan.serving import wire
from keras_unigan.serving.status import NAMES, ServingError, invalid

DEFAULT_SIGNATURE = "serving_default"
WARMUP_FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")
MAX_WARMUP_REQUESTS = 1000
_INIT = "__saved_model_init_op"


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or output of a signature.

    Attributes:
        name: Tensor name in the graph.
        number: DataType number.
        shape: Sizes, None where free; None when the rank is free.
    """

    name: str
    number: int
    shape: tuple | None

    @classmethod
    def of(cls, info):
        """Reads a TensorInfo."""
        if info.tensor_shape.unknown_rank:
            return cls(info.name, info.dtype, None)
        sizes = (d.size for d in info.tensor_shape.dim)
        return cls(info.name, info.dtype, tuple(None if s < 0 else s for s in sizes))

    def accepts(self, shape):
        """Whether an array of this shape fits."""
        return self.shape is None or (
            len(self.shape) == len(shape)
            and all(a is None or a == b for a, b in zip(self.shape, shape, strict=True))
        )


@dataclasses.dataclass(frozen=True)
class Signature:
    """A named function: alias -> `Tensor` of its inputs and outputs, and default inputs."""

    inputs: dict
    outputs: dict
    defaults: dict


class Servable:
    """A SavedModel in memory.

    Args:
        path: Version folder.
        use_gpu: Whether GPUs may be used, where there are any.

    Raises:
        ServingError: When the folder holds no whole SavedModel; the message names no file.
    """

    def __init__(self, path, use_gpu=True):
        self.path = str(path)
        meta = _meta_graph(self.path)
        self.signature_defs = {k: v for k, v in meta.signature_def.items()}
        self.signatures = {
            name: Signature(
                {k: Tensor.of(v) for k, v in sorted(definition.inputs.items())},
                {k: Tensor.of(v) for k, v in sorted(definition.outputs.items())},
                {k: wire.to_array(v, k) for k, v in definition.defaults.items()},
            )
            for name, definition in self.signature_defs.items()
            if name != _INIT
        }
        self._texts = _assertion_texts(meta.graph_def)
        graph = tf.Graph()
        config = tf.compat.v1.ConfigProto(device_count={} if use_gpu else {"GPU": 0})
        self._session = tf.compat.v1.Session(graph=graph, config=config)
        try:
            with graph.as_default():
                tf.import_graph_def(meta.graph_def, name="")
            graph.finalize()
            self._restore(meta)
        except (tf.errors.OpError, ValueError, KeyError) as error:
            self.close()
            code = NAMES.get(getattr(error, "error_code", None), "INVALID_ARGUMENT")
            raise ServingError(
                code, "The SavedModel's graph or variables cannot be loaded"
            ) from None
        except BaseException:
            self.close()
            raise

    def _restore(self, meta):
        prefix = os.path.join(self.path, "variables", "variables")
        saver = meta.saver_def
        holds = any(n.op in ("VarHandleOp", "VariableV2") for n in meta.graph_def.node)
        if holds and not os.path.isfile(prefix + ".index"):
            raise ServingError("NOT_FOUND", "The SavedModel has variables but no variables file")
        if holds and saver.restore_op_name:
            self._session.run(saver.restore_op_name, {saver.filename_tensor_name: prefix})
        init = meta.signature_def.get(_INIT)
        if init is not None:
            assets = {
                a.tensor_info.name: os.path.join(self.path, "assets", a.filename)
                for a in meta.asset_file_def
            }
            self._session.run(init.outputs[_INIT].name.split(":")[0], assets)

    def close(self):
        """Frees the session; nothing may run in it then."""
        self._session.close()

    def prepare(self, signature_name, inputs, output_filter=()):
        """Checks a request against a signature without running it.

        Args:
            signature_name: Name of the signature; empty is `serving_default`.
            inputs: Alias -> array.
            output_filter: Output aliases wanted; none means all.

        Returns:
            (signature name, feeds by tensor name, output alias -> tensor name).

        Raises:
            ServingError: With the codes and texts of TensorFlow Serving; wrong shapes in addition.
        """
        name = signature_name or DEFAULT_SIGNATURE
        signature = self.signature(name)
        check_names(signature, inputs)
        feeds = {}
        for index, (alias, tensor) in enumerate(signature.inputs.items()):
            if alias in inputs:
                array = inputs[alias]
                check_tensor(index, alias, tensor, array)
            else:
                array = signature.defaults[alias]
            feeds[tensor.name] = array
        wanted = {}
        for alias in output_filter or signature.outputs:
            if alias not in signature.outputs:
                raise invalid(
                    f"output tensor alias not found in signature: {alias} Outputs expected to be "
                    f"in the set {{{','.join(signature.outputs)}}}."
                )
            if alias in wanted:
                raise invalid(f"duplicate output tensor alias: {alias}")
            wanted[alias] = signature.outputs[alias].name
        return name, feeds, wanted

    def signature(self, name):
        """The `Signature` of a name.

        Raises:
            ServingError: FAILED_PRECONDITION when there is none.
        """
        if name not in self.signatures:
            raise ServingError("FAILED_PRECONDITION", f'Serving signature key "{name}" not found.')
        return self.signatures[name]

    def run(self, feeds, wanted, timeout_ms=None):
        """Runs the graph.

        Args:
            feeds: Tensor name -> array, from `prepare`.
            wanted: Output alias -> tensor name, from `prepare`.
            timeout_ms: Longest time in milliseconds; None is unlimited.

        Returns:
            Output alias -> array.

        Raises:
            ServingError: With the code of the failed kernel and a text that holds no values.
        """
        options = None
        if timeout_ms is not None:
            options = tf.compat.v1.RunOptions(timeout_in_ms=max(1, int(timeout_ms)))
        try:
            values = self._session.run(list(wanted.values()), feeds, options=options)
        except tf.errors.OpError as error:
            raise self._error(error) from None
        return {a: np.asarray(v) for a, v in zip(wanted, values, strict=True)}

    def _error(self, error):
        """The answer for a failed run: a constant text of the graph, or a general one."""
        code = NAMES.get(error.error_code, "UNKNOWN")
        said = [text for text in self._texts if text in error.message]
        if said:
            return ServingError(code, f"assertion failed: [{max(said, key=len)}]")
        if code == "DEADLINE_EXCEEDED":
            return ServingError(code, "The deadline passed while the model ran")
        return ServingError(code, "The graph of the model failed on this request")

    def predict(self, signature_name, inputs, output_filter=(), timeout_ms=None):
        """Checks and runs a request: alias -> array in, alias -> array out."""
        _, feeds, wanted = self.prepare(signature_name, inputs, output_filter)
        return self.run(feeds, wanted, timeout_ms)

    def warm_up(self):
        """Answers the version's own warm-up requests.

        Returns:
            Number of requests answered.

        Raises:
            ServingError: When one fails, or the file is damaged.
        """
        path = os.path.join(self.path, WARMUP_FILE)
        if not os.path.isfile(path):
            return 0
        count = 0
        try:
            for record in (
                tf.data.TFRecordDataset(path).take(MAX_WARMUP_REQUESTS).as_numpy_iterator()
            ):
                log = wire.prediction_log_pb2.PredictionLog.FromString(record)
                if log.HasField("predict_log"):
                    request = log.predict_log.request
                    inputs = {k: wire.to_array(v, k) for k, v in request.inputs.items()}
                    self.predict(request.model_spec.signature_name, inputs, request.output_filter)
                    count += 1
        except tf.errors.DataLossError:
            raise ServingError("DATA_LOSS", "The file of warm-up requests is damaged") from None
        return count


def check_names(signature, names):
    """Compares input names with a signature; the texts are TensorFlow Serving's.

    Raises:
        ServingError: INVALID_ARGUMENT.
    """
    sent, known = set(names), set(signature.inputs)
    if len(sent) > len(known) or (len(sent) < len(known) and not signature.defaults):

        def join(found):
            return "{" + ",".join(sorted(found)) + "}"

        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(known)} len({join(sent)}) != "
            f"len({join(known)}). Sent extra: {join(sent - known)}. Missing but required: "
            f"{join(known - sent)}."
        )
    for alias, tensor in signature.inputs.items():
        if alias not in sent and alias not in signature.defaults:
            raise invalid(
                f"Signature input alias: {alias}(feed name: {tensor.name}) not found in request "
                "and no default value provided. Inputs expected to be in the request "
                f"{{{','.join(sorted(sent))}}}"
            )


def check_tensor(index, alias, tensor, array):
    """Compares an array with an input of a signature.

    Raises:
        ServingError: INVALID_ARGUMENT for another type or shape.
    """
    number = wire.type_number(array.dtype)
    if number != tensor.number:
        raise invalid(
            f"Expects arg[{index}] to be {wire.type_name(tensor.number)} but "
            f"{wire.type_name(number)} is provided"
        )
    if not tensor.accepts(array.shape):
        expected = ",".join("?" if s is None else str(s) for s in tensor.shape)
        got = ",".join(str(s) for s in array.shape)
        raise invalid(f"Input {alias} has shape [{got}] but the signature expects [{expected}]")


def _meta_graph(path):
    """MetaGraphDef with tag "serve" of `saved_model.pb`."""
    try:
        with open(os.path.join(path, "saved_model.pb"), "rb") as file:
            model = wire.saved_model_pb2.SavedModel.FromString(file.read())
    except OSError:
        raise ServingError("NOT_FOUND", "The version folder has no saved_model.pb") from None
    except DecodeError:
        raise ServingError("DATA_LOSS", "saved_model.pb is damaged") from None
    for meta in model.meta_graphs:
        if "serve" in meta.meta_info_def.tags:
            return meta
    raise ServingError("NOT_FOUND", 'The SavedModel has no graph with the tag "serve"')


def _assertion_texts(graph_def):
    """Constant texts that assertions of the graph print; they cannot hold any part of a request."""
    texts = set()
    for nodes in [graph_def.node, *(f.node_def for f in graph_def.library.function)]:
        constants = {
            n.name: n.attr["value"].tensor.string_val
            for n in nodes
            if n.op == "Const" and n.attr["value"].tensor.string_val
        }
        for node in nodes:
            if node.op == "Assert":
                for name in node.input[1:]:
                    for value in constants.get(name.split(":")[0], ()):
                        texts.add(value.decode("utf-8", "replace"))
    return texts - {""}
