"""Activation functions, each in the form the runtimes recognise and fuse."""

from __future__ import annotations

import math

from deploykit_targets._onnx.ops.table import Call, Translation, translates

_DIRECT = {"relu": "Relu", "mish": "Mish", "softsign": "Softsign", "hardswish": "HardSwish"}


def _direct(op_type: str) -> Translation:
    return lambda c: c.op(op_type, c.value("self"))


for _stem, _op in _DIRECT.items():
    translates(f"aten.{_stem}.default")(_direct(_op))


@translates("aten.relu6.default")
def relu6(c: Call) -> str:
    """Clip to [0, 6]."""
    return c.op("Clip", c.value("self"), c.constant(0), c.constant(6))


@translates("aten.hardsigmoid.default")
def hardsigmoid(c: Call) -> str:
    """clip(x / 6 + 1 / 2, 0, 1)."""
    return c.op("HardSigmoid", c.value("self"), alpha=1 / 6, beta=0.5)


@translates("aten.silu.default")
def silu(c: Call) -> str:
    """`x * sigmoid(x)`."""
    value = c.value("self")
    return c.op("Mul", value, c.op("Sigmoid", value))


@translates("aten.gelu.default")
def gelu(c: Call) -> str:
    """Gelu, exact or tanh. Below opset 20 it is written in the form that ONNX Runtime and TensorRT fuse."""
    value = c.value("self")
    if c.writer.opset >= 20:
        return c.op("Gelu", value, approximate=c["approximate"])
    if c["approximate"] == "tanh":
        return _tanh_gelu(c, value)
    error = c.op("Erf", c.op("Div", value, c.constant(math.sqrt(2))))
    return c.op("Mul", c.op("Mul", value, c.op("Add", error, c.constant(1.0))), c.constant(0.5))


def _tanh_gelu(c: Call, value: str) -> str:
    cubic = c.op("Mul", c.constant(0.044715), c.op("Pow", value, c.constant(3.0)))
    inner = c.op("Mul", c.constant(math.sqrt(2 / math.pi)), c.op("Add", value, cubic))
    half = c.op("Mul", value, c.constant(0.5))
    return c.op("Mul", half, c.op("Add", c.op("Tanh", inner), c.constant(1.0)))


@translates("aten.leaky_relu.default")
def leaky_relu(c: Call) -> str:
    """Slope `negative_slope` below zero."""
    return c.op("LeakyRelu", c.value("self"), alpha=float(c["negative_slope"]))


@translates("aten.elu.default", "aten.celu.default", "aten.selu.default")
def elu(c: Call) -> str:
    """Exponential units; ELU with an output or input scale is written out."""
    stem = str(c.node.target).split(".")[1]
    if stem == "selu":
        return c.op("Selu", c.value("self"))
    alpha, scale, input_scale = (float(c.get(name, 1.0)) for name in ("alpha", "scale", "input_scale"))
    if stem == "celu":
        return c.op("Celu", c.value("self"), alpha=alpha)
    if input_scale != 1.0:
        raise NotImplementedError("elu with input_scale other than 1")
    value = c.op("Elu", c.value("self"), alpha=alpha)
    return value if scale == 1.0 else c.op("Mul", value, c.constant(scale))


@translates("aten.prelu.default", "aten._prelu_kernel.default")
def prelu(c: Call) -> str:
    """One slope, or one per channel (axis 1): the slopes get the trailing ones that ONNX broadcasting needs."""
    slope, rank, slope_rank = c.value("weight"), c.meta("self").dim(), c.meta("weight").dim()
    if slope_rank == 1 and rank > 2 and c.meta("weight").numel() > 1:
        slope = c.op("Unsqueeze", slope, c.ints(range(1, rank - 1)))
    return c.op("PRelu", c.value("self"), slope)


@translates("aten.softplus.default")
def softplus(c: Call) -> str:
    """log(1 + exp(beta x)) / beta; the threshold only guards against overflow, which ONNX's operator does itself."""
    beta = c["beta"]
    if beta == 1:
        return c.op("Softplus", c.value("self"))
    scaled = c.op("Mul", c.value("self"), c.constant(beta))
    return c.op("Div", c.op("Softplus", scaled), c.constant(beta))


@translates("aten.log_sigmoid.default", "aten.log_sigmoid_forward.default")
def log_sigmoid(c: Call) -> str | tuple[str, ...]:
    """-softplus(-x), which does not overflow."""
    value = c.op("Neg", c.op("Softplus", c.op("Neg", c.value("self"))))
    return (value,) if isinstance(c.out, (tuple, list)) else value


@translates("aten.glu.default")
def glu(c: Call) -> str:
    """First half times sigmoid of the second."""
    first, second = c.writer.multi("Split", (c.value("self"),), 2, axis=c["dim"], num_outputs=2)
    return c.op("Mul", first, c.op("Sigmoid", second))


@translates("aten.threshold.default")
def threshold(c: Call) -> str:
    """`x where x > threshold`, else `value`."""
    value = c.value("self")
    return c.op("Where", c.op("Greater", value, c.constant(c["threshold"])), value, c.constant(c["value"]))


@translates("aten.softshrink.default", "aten.hardshrink.default")
def shrink(c: Call) -> str:
    """Zero within [-lambd, lambd]; softshrink moves the rest by lambd."""
    bias = float(c["lambd"]) if "softshrink" in str(c.node.target) else 0.0
    return c.op("Shrink", c.value("self"), lambd=float(c["lambd"]), bias=bias)


@translates("aten.softmax.int", "aten._softmax.default", "aten.log_softmax.int", "aten._log_softmax.default")
def softmax(c: Call) -> str:
    """Softmax over one axis, or its logarithm, in the result's dtype."""
    op_type = "LogSoftmax" if "log_softmax" in str(c.node.target) else "Softmax"
    value, rank = c.as_dtype(c["self"], c.out.dtype), c.meta("self").dim()
    if rank == 1:  # as one row: TensorRT refuses vectors
        row = c.op(op_type, c.op("Reshape", value, c.ints([1, -1])), axis=1)
        return c.op("Reshape", row, c.ints([-1]))
    return c.op(op_type, value, axis=c.axis(c["dim"], rank))
