"""Classify, Regress and MultiInference: signatures that take serialized tf.Examples.

Which signatures fit is told by the names and number of their tensors, as in TensorFlow Serving,
which does not look at `method_name` either: every signature of a TF 2 SavedModel says "predict".
"""

import numpy as np

from keras_unigan.serving import wire
from keras_unigan.serving.servable import DEFAULT_SIGNATURE
from keras_unigan.serving.status import ServingError, invalid

CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"
_INPUTS, _CLASSES, _SCORES, _OUTPUTS = "inputs", "classes", "scores", "outputs"


def serialized(message):
    """Serialized examples of an `Input`, each with the context before it.

    Raises:
        ServingError: INVALID_ARGUMENT when there is none.
    """
    kind = message.WhichOneof("kind")
    examples, context = (), b""
    if kind == "example_list":
        examples = message.example_list.examples
    elif kind == "example_list_with_context":
        examples = message.example_list_with_context.examples
        context = message.example_list_with_context.context.SerializeToString()
    if not examples:
        raise invalid("Input is empty.")
    result = np.empty(len(examples), object)
    result[:] = [context + example.SerializeToString() for example in examples]
    return result


def find(servable, name, method):
    """Finds and checks a signature.

    Args:
        servable: `servable.Servable`.
        name: Name of the signature; empty is `serving_default`.
        method: `CLASSIFY` or `REGRESS`.

    Returns:
        (name, `servable.Signature`).

    Raises:
        ServingError: INVALID_ARGUMENT with TensorFlow Serving's texts.
    """
    name = name or DEFAULT_SIGNATURE
    if name not in servable.signatures:
        raise invalid(f"No signature was found with the name: {name}")
    signature = servable.signatures[name]
    (_check_classify if method == CLASSIFY else _check_regress)(signature)
    return name, signature


def _check_classify(signature):
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if _INPUTS not in signature.inputs:
        raise invalid("No classification inputs found in SignatureDef")
    if not {_CLASSES, _SCORES} & set(signature.outputs):
        raise invalid(
            "Expected classification signature outputs to contain at least one of "
            f'"{_CLASSES}" or "{_SCORES}".'
        )


def _check_regress(signature):
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    if _INPUTS not in signature.inputs:
        raise invalid("No regression inputs found in SignatureDef")
    if _OUTPUTS not in signature.outputs:
        raise invalid("No regression outputs found in SignatureDef")


def wanted(signature, method):
    """Output alias -> tensor name of what the method reads."""
    aliases = (_CLASSES, _SCORES) if method == CLASSIFY else (_OUTPUTS,)
    return {a: signature.outputs[a].name for a in aliases if a in signature.outputs}


def tasks(servable, request):
    """Signatures of a MultiInferenceRequest.

    Returns:
        [(method, signature name, `servable.Signature`)], one for each task.

    Raises:
        ServingError: INVALID_ARGUMENT or UNIMPLEMENTED with TensorFlow Serving's texts.
    """
    found, seen, model = [], set(), request.tasks[0].model_spec.name
    for task in request.tasks:
        if not task.model_spec.name:
            raise invalid("Found ModelSpec with an empty model name.")
        if task.model_spec.name != model:
            raise invalid(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if name in seen:
            raise invalid(f"Duplicate evaluation of signature: {name}")
        seen.add(name)
        if task.method_name not in (CLASSIFY, REGRESS):
            raise ServingError(
                "UNIMPLEMENTED", f"Unsupported signature method_name: {task.method_name}"
            )
        found.append((task.method_name, *find(servable, name, task.method_name)))
    if len({signature.inputs[_INPUTS].name for _, _, signature in found}) > 1:
        raise invalid("Input tensor must be the same for all Signatures.")
    return found


def classification(outputs, count):
    """ClassificationResult of the outputs for `count` examples.

    Raises:
        ServingError: INVALID_ARGUMENT when the model's outputs are no classes or scores.
    """
    for name, number in ((_CLASSES, wire.STRING), (_SCORES, wire.FLOAT)):
        if name in outputs:
            _check_matrix(name, outputs[name], number, count)
    sizes = [array.shape[1] for array in outputs.values()]
    if len(set(sizes)) > 1:
        raise invalid(
            "Tensors class and score should match in dim_size(1). Got "
            f"{outputs[_CLASSES].shape[1]} vs. {outputs[_SCORES].shape[1]}"
        )
    result = wire.classification_pb2.ClassificationResult()
    for row in range(count):
        item = result.classifications.add()
        for column in range(sizes[0]):
            found = item.classes.add()
            if _CLASSES in outputs:
                found.label = _text(outputs[_CLASSES][row, column])
            if _SCORES in outputs:
                found.score = float(outputs[_SCORES][row, column])
    return result


def _check_matrix(name, array, number, count):
    kind = "DT_STRING" if number == wire.STRING else "DT_FLOAT"
    if array.ndim != 2:
        shape = ",".join(map(str, array.shape))
        raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got [{shape}]")
    if wire.type_number(array.dtype) != number:
        raise invalid(f"Expected {name} Tensor of {kind}.")
    if len(array) != count:
        raise invalid(f"Expected {name} output batch size of {count}. Got: {len(array)}")


def regression(outputs, count):
    """RegressionResult of the outputs for `count` examples.

    Raises:
        ServingError: INVALID_ARGUMENT when the model's output is no number for each example.
    """
    array = outputs[_OUTPUTS]
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] != 1):
        shape = ",".join(map(str, array.shape))
        raise invalid(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"[{shape}]"
        )
    if len(array) != count:
        raise invalid(f"Input batch size did not match output batch size: {count} vs. {len(array)}")
    if wire.type_number(array.dtype) != wire.FLOAT:
        raise invalid("Expected output Tensor of DT_FLOAT.")
    result = wire.regression_pb2.RegressionResult()
    for value in array.ravel().tolist():
        result.regressions.add(value=value)
    return result


def _text(value):
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
