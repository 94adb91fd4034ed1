"""How LiteRT wants an int8 model quantized."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from deploykit.contract.formats import INT4_CHANNELS, INT8_AFFINE, INT8_CHANNELS, INT8_SAMPLES, INT16_SYMMETRIC
from deploykit.contract.precision import Precision
from deploykit.contract.scheme import (
    AT_RUN_TIME,
    FOLLOW,
    IN_FLOAT,
    INT8_REQUIRED,
    JOIN,
    PASSENGERS,
    RECURRENT,
    WEIGHT,
    FixedParams,
    Inputs,
    OpRule,
    Scheme,
    no_kernel,
    weights_alone,
)

_ONE_SCALE = ("aten.stack.default", "aten.where.self", "aten.maximum.default", "aten.minimum.default")
"""Of integers, its converter makes integers, and gives all operands the scale of the first: others are cut off."""

# Every tensor that an int8 kernel writes is int8, or the kernel is not chosen; built-in parameters and equal
# scales are conditions of the file format.
LITERT = Scheme(
    name="litert",
    activation=INT8_AFFINE,
    weight=INT8_CHANNELS,
    rules={
        **PASSENGERS,
        **dict.fromkeys(RECURRENT, AT_RUN_TIME),  # its converter writes them out, and gives no step a range
        **dict.fromkeys(("hardswish", "gelu", "sigmoid", "tanh", "leaky_relu", "relu", "relu6"), FOLLOW),
        "conv": INT8_REQUIRED,
        "conv_transpose": no_kernel("conv_transpose"),
        "linear": INT8_REQUIRED,
        "matmul": INT8_REQUIRED,
        "add": JOIN,
        "sub": JOIN,
        "mul": JOIN,
        "concat": JOIN,
        "avg_pool": FOLLOW,
        "mean": FOLLOW,
        "resize_linear": FOLLOW,
    },
    same_scale=frozenset({"concat", "reshape", "split", "max_pool", "avg_pool", "resize_nearest", "resize_linear"}),
    always_same_scale=frozenset({"concat", *_ONE_SCALE}),
    fixed_outputs={
        "softmax": FixedParams(1 / 256, -128),
        "sigmoid": FixedParams(1 / 256, -128),
        "tanh": FixedParams(1 / 128, 0),
    },
    weights="unfolded",
    bias="int32",
    float_outputs=False,
    run_time_outputs=frozenset({"linear"}),
)

_PRODUCTS = ("linear", "conv", "conv_transpose", "matmul", "embedding", "lstm", "gru", "rnn")
NO_16_BITS = "no 16-bit kernel, or steps inside it that calibration does not see"
_NO_4_BITS = "ai-edge-quantizer has no 4-bit form of it"

# What ai-edge-quantizer writes into the float file, in each of its recipes. Its kernels round a row of a matrix at a
# time, and a sample of an image.
BY_VENDOR = {
    Precision.INT8_DYNAMIC: weights_alone(
        "litert-dynamic",
        INT8_CHANNELS,
        rules={
            **dict.fromkeys(_PRODUCTS, AT_RUN_TIME),
            **dict.fromkeys(("conv", "conv_transpose"), replace(AT_RUN_TIME, rounded=INT8_SAMPLES)),
            "embedding": WEIGHT,
        },
    ),
    Precision.INT8_WEIGHT_ONLY: weights_alone(
        "litert-int8-weights", INT8_CHANNELS, rules=dict.fromkeys(_PRODUCTS, WEIGHT)
    ),
    Precision.INT4_WEIGHT_ONLY: weights_alone(
        "litert-int4-weights",
        INT4_CHANNELS,
        rules={
            **dict.fromkeys(_PRODUCTS, WEIGHT),
            "conv": replace(WEIGHT, depthwise=False, reason=_NO_4_BITS),
            "conv_transpose": OpRule(Inputs.FLOAT, reason=_NO_4_BITS),
        },
    ),
    Precision.INT16X8: replace(
        LITERT,
        name="litert-int16x8",
        activation=INT16_SYMMETRIC,
        rules={**LITERT.rules, **dict.fromkeys(RECURRENT, OpRule(Inputs.FLOAT, reason=NO_16_BITS))},
        fixed_outputs={},
        float_outputs=False,
        run_time_outputs=frozenset(),
        bias_correction=False,
        by_vendor=True,
    ),
}


if TYPE_CHECKING:
    from torch.fx import Node

    from deploykit.capture import CapturedModel
    from deploykit.contract.request import Request
    from deploykit_calibration.graph_view import GraphView

_INTEGER_ENDS = frozenset({"conv", "conv_transpose", "matmul"})


def scheme_of(request: Request, captured: CapturedModel) -> Scheme:
    """The scheme for one model: int8 affine activations, weights rounded in the file's own converter.

    Rounding what the model returns costs 0.5 to 7 dB. Where a linear layer writes it, the layer stays out of the static
    graph, and rounds its input at run time instead: int8 products, float results. Other products have no such form that
    is as fast, and write int8.
    """
    from deploykit_calibration.graph_view import GraphView

    if request.precision is not Precision.INT8:
        return BY_VENDOR.get(request.precision, IN_FLOAT)
    view = GraphView.of(captured)
    integers = request.options.io == "int8" or any(_writer(view, node) in _INTEGER_ENDS for node in view.returned)
    return replace(LITERT, float_outputs=not integers)


def _writer(view: GraphView, node: Node) -> str:
    """Kind of the op that computes a tensor, seen through what only moves or activates it."""
    from torch.fx import Node as FxNode

    from deploykit_calibration.op_kinds import ACTIVATIONS

    while view.kinds[node] in ACTIVATIONS | {"reshape"} and node.args and isinstance(node.args[0], FxNode):
        node = node.args[0]
    return str(view.kinds[node])
