"""Convert a trained network to a TensorFlow SavedModel, one operation of the exported graph at a time.

``torch.export`` expresses each network of this family in about twenty ATen operations. This module maps each
of them to an operation of TensorFlow. Existing converters need other versions of torch (litert-torch 0.10) or
of numpy and protobuf (onnx2tf 1.29).

Shape legend: B images of a batch, C channels, H = W the image size, K classes. torch's maps are
B x C x H x W. TensorFlow's are B x H x W x C, the only layout that it convolves on a CPU.
"""

from __future__ import annotations

import json
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import tensorflow as tf
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from tune_rescon.errors import ConfigError, format_error

__all__ = ["OPERATIONS", "load_saved_model", "write_saved_model"]

#: File of the metadata in the model's folder; TensorFlow reserves ``assets.extra`` for other programs.
_METADATA_FILE: Final = Path("assets.extra", "tune_rescon.json")

#: TensorFlow's axis for each of torch's axes of a map.
_AXES: Final = (0, 3, 1, 2)


def write_saved_model(
    program: ExportedProgram, pixels_BCHW: Tensor, metadata: Mapping[str, str], folder: Path
) -> None:
    """Write a SavedModel of the network in ``program``.

    Args:
        program: The exported network.
        pixels_BCHW: Example images, which give the shape of the input; the batch size is free.
        metadata: Metadata to store in the folder.
        folder: The folder to write.
    """
    module = tf.Module()
    names = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs if spec.target}
    module.weights = {
        name: tf.Variable(_weight(program.state_dict[target]), trainable=False)
        for name, target in names.items()
    }
    _, channels, height, width = pixels_BCHW.shape
    signature = tf.TensorSpec([None, height, width, channels], tf.float32, name="pixels")

    def classify(pixels: Any) -> dict[str, Any]:
        return {"probabilities": _run(program, module.weights, pixels)}

    module.classify = tf.function(classify, input_signature=[signature])
    tf.saved_model.save(module, str(folder), signatures=module.classify)
    (folder / _METADATA_FILE).parent.mkdir()
    (folder / _METADATA_FILE).write_text(json.dumps(dict(metadata)), encoding="utf-8")


def load_saved_model(folder: Path) -> Callable[[Tensor], Tensor]:
    """Return the model in ``folder`` as a function from images, B x C x H x W, to probabilities, B x K."""
    loaded = tf.saved_model.load(str(folder))
    classify = loaded.signatures["serving_default"]

    def run(pixels_BCHW: Tensor) -> Tensor:
        assert loaded is not None  # keeps a reference: the variables are deleted with `loaded`
        pixels_BHWC = tf.constant(pixels_BCHW.permute(0, 2, 3, 1).numpy())
        return torch.from_numpy(classify(pixels=pixels_BHWC)["probabilities"].numpy())

    return run


def _weight(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return a weight in TensorFlow's layout: kernels as H x W x in x out, C x 1 x 1 weights as 1 x 1 x C."""
    values = tensor.detach().numpy()
    order = {4: (2, 3, 1, 0), 3: (1, 2, 0)}.get(values.ndim)
    return values if order is None else np.transpose(values, order)


def _run(program: ExportedProgram, weights: Mapping[str, Any], pixels_BHWC: Any) -> Any:
    """Compute the output of the graph, one node at a time."""
    values: dict[Node, Any] = {}
    for node in program.graph.nodes:
        arguments = torch.fx.map_arg(node.args, values.__getitem__)
        if node.op == "placeholder":
            values[node] = weights.get(node.name, pixels_BHWC)
        elif node.op == "output":
            (probabilities_BK,) = arguments[0]
            return probabilities_BK
        else:
            values[node] = _operation(str(node.target))(*arguments, **node.kwargs)
    raise AssertionError("a graph has an output")


def _operation(name: str) -> Callable[..., Any]:
    if name not in OPERATIONS:
        rule = "the format tensorflow has the operations of Residual Attention Networks"
        hint = "Export to onnx, torch-export or safetensors."
        raise ConfigError(format_error(rule, got=f"a network with {name}", where="--format", hint=hint))
    return OPERATIONS[name]


def _axes(x: Any, axes: int | Sequence[int]) -> list[int]:
    """Convert torch's axes to TensorFlow's."""
    given = [axes] if isinstance(axes, int) else axes
    return [_AXES[axis] for axis in given] if len(x.shape) == len(_AXES) else list(given)


def _conv2d(x: Any, kernel: Any, *rest: Any) -> Any:
    # Torch leaves out trailing arguments that have their default value.
    bias, stride, padding = [*rest, *(None, 1, 0)[len(rest) :]][:3]
    # No convolution of these networks is dilated. TensorFlow infers the groups from the shape of the kernel.
    assert bias is None
    return tf.nn.conv2d(x, kernel, strides=stride, padding=_padded(padding))


def _max_pool2d(x: Any, size: Any, stride: Any, padding: Any) -> Any:
    return tf.nn.max_pool2d(x, size, stride, _padded(padding))


def _padded(padding: int | Sequence[int]) -> list[list[int]]:
    down, right = (padding, padding) if isinstance(padding, int) else padding
    return [[0, 0], [down, down], [right, right], [0, 0]]


def _batch_norm(x: Any, *arguments: Any) -> Any:
    weight, bias, mean, variance, training, _momentum, eps, _with_cudnn = arguments
    assert not training
    return tf.nn.batch_normalization(x, mean, variance, bias, weight, eps)


def _upsample(x: Any, size: Sequence[int], align_corners: bool, scales: None) -> Any:
    assert scales is None
    # `tf.image.resize` does not support align_corners.
    return tf.raw_ops.ResizeBilinear(images=x, size=list(size), align_corners=align_corners)


def _var_mean(x: Any, axes: Sequence[int], *, correction: int, keepdim: bool) -> tuple[Any, Any]:
    assert correction == 0
    mean, variance = tf.nn.moments(x, _axes(x, axes), keepdims=keepdim)
    return variance, mean


def _vector_norm(x: Any, order: float, axes: Sequence[int], keepdim: bool) -> Any:
    return tf.norm(x, ord=order, axis=_axes(x, axes)[0], keepdims=keepdim)


def _slice(x: Any, *rest: Any) -> Any:
    # Torch leaves out trailing arguments that have their default value.
    axis, start, end, step = [*rest, *(0, None, None, 1)[len(rest) :]][:4]
    index = [slice(None)] * len(x.shape)
    # Torch writes an open end as the largest integer, which TensorFlow's indexes cannot hold.
    is_open = end is None or end == sys.maxsize
    index[_axes(x, axis)[0]] = slice(start, None if is_open else end, step)
    return x[tuple(index)]


#: TensorFlow's operation for every ATen operation of the networks, their normalisation and their softmax.
OPERATIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "aten.add.Tensor": operator.add,
    "aten.batch_norm.default": _batch_norm,
    "aten.clamp_min.default": tf.maximum,
    "aten.conv2d.default": _conv2d,
    "aten.div.Tensor": operator.truediv,
    "aten.expand_as.default": lambda x, like: tf.broadcast_to(x, tf.shape(like)),
    "aten.linalg_vector_norm.default": _vector_norm,
    "aten.linear.default": lambda x, weight, bias: tf.matmul(x, weight, transpose_b=True) + bias,
    "aten.max_pool2d.default": _max_pool2d,
    "aten.mean.dim": lambda x, axes: tf.reduce_mean(x, _axes(x, axes)),
    "aten.mul.Tensor": operator.mul,
    # torch's relu_ works in place, but no other operation reads its input, so a copy is equivalent.
    "aten.relu_.default": tf.nn.relu,
    "aten.rsqrt.default": tf.math.rsqrt,
    "aten.sigmoid.default": tf.sigmoid,
    "aten.slice.Tensor": _slice,
    "aten.softmax.int": tf.nn.softmax,
    "aten.sub.Tensor": operator.sub,
    "aten.upsample_bilinear2d.vec": _upsample,
    "aten.var_mean.correction": _var_mean,
    str(operator.getitem): operator.getitem,
}
