"""Every layer that has a rule, in a file of one layer, against NumPy or plain PyTorch.

1e-5 is a few roundings of float32 on values near 1; layers that only move values must be equal to it trivially.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from deploykit_targets.coreml.mil_evaluator import EvaluationError
from deploykit_targets.coreml.mil_evaluator.milproto import import_coremltools
from deploykit_targets.coreml.nn_evaluator import UnsupportedLayerError, load
from deploykit_targets.coreml.nn_evaluator.network import RULES

pytest.importorskip("coremltools", reason="the evaluator of neural networks reads files with coremltools")

Array = np.ndarray[Any, Any]
Case = tuple[str, dict[str, Any], list[Array], Callable[..., Any]]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def weights(array: Array) -> dict[str, Any]:
    return {"floatValue": [float(value) for value in array.reshape(-1)]}


def run(path: Path, kind: str, parameters: dict[str, Any], inputs: list[Array], outputs: int = 1) -> list[Array]:
    """Write a network of one layer, read it again, and evaluate it."""
    from google.protobuf.json_format import ParseDict

    model = import_coremltools().proto.Model_pb2.Model(specificationVersion=5)
    names, results = [f"in{index}" for index in range(len(inputs))], [f"out{index}" for index in range(outputs)]
    for name, array in zip(names, inputs, strict=True):
        feature = model.description.input.add(name=name)
        feature.type.multiArrayType.shape.extend(array.shape)
        feature.type.multiArrayType.dataType = 65568
    for name in results:
        model.description.output.add(name=name).type.multiArrayType.dataType = 65568
    network = model.neuralNetwork
    network.arrayInputShapeMapping = 1
    ParseDict({"name": "only", "input": names, "output": results, kind: parameters}, network.layers.add())
    path.write_bytes(model.SerializeToString())
    loaded = load(path)
    assert loaded.ops() == {kind: 1}
    return list(loaded.run(dict(zip(names, inputs, strict=True))).values())


def tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    """A reference written in PyTorch."""
    return lambda *arrays: function(*map(torch.from_numpy, arrays))


X, Y = normal(2, 3, 4, 5), normal(2, 3, 4, 5, seed=1)
IMAGE = normal(1, 4, 6, 7)
POSITIVE = np.abs(X) + 0.5
UNIT = np.tanh(X)
W, B = normal(6, 2, 3, 2, seed=2), normal(6, seed=3)
DECONV = normal(4, 3, 3, 2, seed=4)
PAIR = torch.from_numpy
C = normal(3, seed=5)
EDGES = {"borderAmounts": [{"startEdgeSize": 1, "endEdgeSize": 2}, {"startEdgeSize": 0, "endEdgeSize": 1}]}
TABLE = normal(7, 3, seed=6)
IDS = np.array([[0, 6, 3]], np.float32)


def mvn(x: Array, axes: tuple[int, ...], epsilon: float = 1e-5) -> Array:
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)


def padded(x: Array, mode: str) -> Array:
    return np.pad(x, ((0, 0), (0, 0), (1, 2), (0, 1)), mode=mode)  # type: ignore[call-overload,no-any-return]


COMPUTE: list[Case] = [
    (
        "convolution",
        {
            "outputChannels": 6,
            "kernelChannels": 2,
            "nGroups": 2,
            "kernelSize": [3, 2],
            "stride": [2, 1],
            "dilationFactor": [1, 2],
            "valid": {"paddingAmounts": EDGES},
            "hasBias": True,
            "weights": weights(W),
            "bias": weights(B),
        },
        [IMAGE],
        lambda x: F.conv2d(PAIR(padded(x, "constant")), PAIR(W), PAIR(B), stride=(2, 1), dilation=(1, 2), groups=2),
    ),
    (
        "convolution",
        {
            "outputChannels": 6,
            "kernelChannels": 2,
            "nGroups": 2,
            "kernelSize": [3, 2],
            "same": {},
            "weights": weights(W),
        },
        [IMAGE],
        lambda x: F.conv2d(F.pad(PAIR(x), (0, 1, 1, 1)), PAIR(W), groups=2),
    ),
    (
        "convolution",
        {
            "outputChannels": 6,
            "kernelChannels": 4,
            "nGroups": 2,
            "kernelSize": [3, 2],
            "stride": [2, 2],
            "valid": {},
            "isDeconvolution": True,
            "weights": weights(DECONV),
        },
        [IMAGE],
        lambda x: F.conv_transpose2d(PAIR(x), PAIR(DECONV), stride=2, groups=2),
    ),
    (
        "pooling",
        {"type": "MAX", "kernelSize": [2, 3], "stride": [2, 1], "valid": {}},
        [IMAGE],
        tensors(lambda x: F.max_pool2d(x, (2, 3), (2, 1))),
    ),
    (
        "pooling",
        {
            "type": "AVERAGE",
            "kernelSize": [3, 3],
            "stride": [2, 2],
            "valid": {
                "paddingAmounts": {
                    "borderAmounts": [{"startEdgeSize": 1, "endEdgeSize": 1}, {"startEdgeSize": 1, "endEdgeSize": 1}]
                }
            },
            "avgPoolExcludePadding": True,
        },
        [IMAGE],
        tensors(lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)),
    ),
    (
        "pooling",
        {"type": "MAX", "kernelSize": [3, 3], "stride": [2, 2], "includeLastPixel": {"paddingAmounts": [0, 0]}},
        [IMAGE],
        tensors(lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True)),
    ),
    ("pooling", {"type": "L2", "globalPooling": True}, [IMAGE], lambda x: np.sqrt((x**2).sum((2, 3), keepdims=True))),
    (
        "innerProduct",
        {
            "inputChannels": 5,
            "outputChannels": 3,
            "hasBias": True,
            "weights": weights(normal(3, 5, seed=8)),
            "bias": weights(C),
        },
        [X],
        lambda x: x @ normal(3, 5, seed=8).T + C,
    ),
    ("batchedMatmul", {"transposeB": True}, [X, Y], lambda x, y: x @ y.swapaxes(-1, -2)),
    (
        "batchedMatmul",
        {"weightMatrixFirstDimension": 5, "weightMatrixSecondDimension": 3, "weights": weights(normal(3, 5, seed=8))},
        [X],
        lambda x: x @ normal(3, 5, seed=8).T,
    ),
    (
        "embeddingND",
        {"vocabSize": 7, "embeddingSize": 3, "hasBias": True, "weights": weights(TABLE.T), "bias": weights(C)},
        [IDS[..., None]],
        lambda ids: TABLE[ids[..., 0].astype(int)] + C,
    ),
    (
        "batchnorm",
        {
            "channels": 3,
            "epsilon": 1e-3,
            "gamma": weights(C),
            "beta": weights(C + 1),
            "mean": weights(C - 1),
            "variance": weights(C**2 + 0.5),
        },
        [X],
        tensors(lambda x: F.batch_norm(x, *map(PAIR, (C - 1, C**2 + 0.5, C, C + 1)), eps=1e-3)),
    ),
    (
        "batchnorm",
        {
            "channels": 3,
            "computeMeanVar": True,
            "instanceNormalization": True,
            "epsilon": 1e-3,
            "gamma": weights(C),
            "beta": weights(C + 1),
        },
        [X],
        tensors(lambda x: F.instance_norm(x, weight=PAIR(C), bias=PAIR(C + 1), eps=1e-3)),
    ),
    ("mvn", {"normalizeVariance": True, "epsilon": 1e-2}, [X], lambda x: mvn(x, (-2, -1), 1e-2)),
    ("mvn", {"acrossChannels": True, "normalizeVariance": True}, [X], lambda x: mvn(x, (-3, -2, -1))),
    ("mvn", {}, [X], lambda x: x - x.mean((-2, -1), keepdims=True)),
    (
        "layerNormalization",
        {"normalizedShape": [5], "eps": 1e-3, "gamma": weights(normal(5)), "beta": weights(normal(5, seed=1))},
        [X],
        lambda x: mvn(x, (-1,), 1e-3) * normal(5) + normal(5, seed=1),
    ),
    (
        "l2normalize",
        {"epsilon": 1e-3},
        [IMAGE],
        lambda x: x / np.sqrt((x**2).sum((-3, -2, -1), keepdims=True) + 1e-3),
    ),
    (
        "lrn",
        {"alpha": 0.5, "beta": 0.75, "localSize": 3, "k": 2.0},
        [IMAGE],
        tensors(lambda x: F.local_response_norm(x, 3, alpha=0.5, beta=0.75, k=2.0)),
    ),
    ("softmax", {}, [X], tensors(lambda x: torch.softmax(x, 1))),
    ("softmaxND", {"axis": -1}, [X], tensors(lambda x: torch.softmax(x, -1))),
    (
        "scale",
        {"shapeScale": [3], "scale": weights(C), "hasBias": True, "shapeBias": [1, 4, 5], "bias": weights(normal(20))},
        [X],
        lambda x: x * C[:, None, None] + normal(20).reshape(4, 5),
    ),
    ("bias", {"shape": [1], "bias": {"floatValue": [1.5]}}, [X], lambda x: x + 1.5),
    ("loadConstantND", {"shape": [1, 3], "data": weights(C)}, [], lambda: C[None]),
    (
        "padding",
        {"constant": {"value": 0.0}, "paddingAmounts": EDGES},
        [IMAGE],
        lambda x: padded(x, "constant"),
    ),
    ("padding", {"reflection": {}, "paddingAmounts": EDGES}, [IMAGE], lambda x: padded(x, "reflect")),
    ("padding", {"replication": {}, "paddingAmounts": EDGES}, [IMAGE], lambda x: padded(x, "edge")),
    ("upsample", {"scalingFactor": [2, 3], "mode": "NN"}, [IMAGE], lambda x: x.repeat(2, 2).repeat(3, 3)),
    (
        "upsample",
        {"scalingFactor": [2, 2], "mode": "BILINEAR", "linearUpsampleMode": "ALIGN_CORNERS_FALSE"},
        [IMAGE],
        tensors(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)),
    ),
    (
        "upsample",
        {"fractionalScalingFactor": [1.5, 2.0], "mode": "BILINEAR", "linearUpsampleMode": "ALIGN_CORNERS_TRUE"},
        [IMAGE],
        tensors(lambda x: F.interpolate(x, (9, 14), mode="bilinear", align_corners=True)),
    ),
    (
        "resizeBilinear",
        {"targetSize": [3, 11], "mode": {"samplingMethod": "STRICT_ALIGN_ENDPOINTS_MODE"}},
        [IMAGE],
        tensors(lambda x: F.interpolate(x, (3, 11), mode="bilinear", align_corners=True)),
    ),
]

ACTIVATIONS: list[Case] = [
    ("activation", {kind: parameters}, [X], reference)
    for kind, parameters, reference in (
        ("ReLU", {}, lambda x: np.maximum(x, 0)),
        ("tanh", {}, np.tanh),
        ("sigmoid", {}, lambda x: 1 / (1 + np.exp(-x))),
        ("softsign", {}, lambda x: x / (1 + np.abs(x))),
        ("softplus", {}, lambda x: np.log1p(np.exp(x))),
        ("linear", {"alpha": 2.0, "beta": -1.0}, lambda x: 2 * x - 1),
        ("leakyReLU", {"alpha": 0.1}, lambda x: np.where(x < 0, 0.1 * x, x)),
        ("thresholdedReLU", {"alpha": 0.3}, lambda x: np.where(x > 0.3, x, 0)),
        ("scaledTanh", {"alpha": 1.5, "beta": 0.5}, lambda x: 1.5 * np.tanh(0.5 * x)),
        ("sigmoidHard", {"alpha": 0.3, "beta": 0.4}, lambda x: np.clip(0.3 * x + 0.4, 0, 1)),
        ("ELU", {"alpha": 0.7}, lambda x: np.where(x < 0, 0.7 * np.expm1(x), x)),
        ("PReLU", {"alpha": weights(C)}, lambda x: np.where(x < 0, C[:, None, None] * x, x)),
        (
            "parametricSoftplus",
            {"alpha": {"floatValue": [2.0]}, "beta": {"floatValue": [0.5]}},
            lambda x: 2 * np.log1p(np.exp(0.5 * x)),
        ),
    )
]

UNARY: list[Case] = [
    ("unary", {"type": kind, "scale": 1.0, "epsilon": 1e-3, **more}, [POSITIVE], reference)
    for kind, more, reference in (
        ("SQRT", {"scale": 2.0, "shift": 1.0}, lambda x: np.sqrt(2 * x + 1)),
        ("RSQRT", {}, lambda x: 1 / np.sqrt(x + 1e-3)),
        ("INVERSE", {}, lambda x: 1 / (x + 1e-3)),
        ("POWER", {"alpha": 3.0}, lambda x: x**3),
        ("EXP", {}, np.exp),
        ("LOG", {}, lambda x: np.log(x + 1e-3)),
        ("ABS", {"scale": -1.0}, lambda x: x),
        ("THRESHOLD", {"alpha": 1.0}, lambda x: np.maximum(x, 1)),
    )
] + [
    (kind, {}, [arrays], reference)
    for kind, arrays, reference in (
        ("acos", UNIT, np.arccos),
        ("acosh", POSITIVE + 1, np.arccosh),
        ("asin", UNIT, np.arcsin),
        ("asinh", X, np.arcsinh),
        ("atan", X, np.arctan),
        ("atanh", UNIT * 0.9, np.arctanh),
        ("ceil", X, np.ceil),
        ("cos", X, np.cos),
        ("cosh", X, np.cosh),
        ("erf", X, tensors(torch.special.erf)),
        ("exp2", X, np.exp2),
        ("floor", X, np.floor),
        ("round", X * 3, np.round),
        ("sign", X, np.sign),
        ("sin", X, np.sin),
        ("sinh", X, np.sinh),
        ("tan", UNIT, np.tan),
        ("tanh", X, np.tanh),
        ("copy", X, lambda x: x),
    )
]

ELEMENTWISE: list[Case] = [
    ("gelu", {"mode": "EXACT"}, [X], tensors(F.gelu)),
    ("gelu", {"mode": "TANH_APPROXIMATION"}, [X], tensors(lambda x: F.gelu(x, approximate="tanh"))),
    ("gelu", {"mode": "SIGMOID_APPROXIMATION"}, [X], lambda x: x / (1 + np.exp(-1.702 * x))),
    ("clip", {"minVal": -0.5, "maxVal": 0.25}, [X], lambda x: np.clip(x, -0.5, 0.25)),
    ("clampedReLU", {"alpha": 0.1, "beta": 0.5}, [X], lambda x: np.minimum(np.where(x >= 0, x, 0.1 * x), 0.5)),
    ("add", {"alpha": 2.5}, [X], lambda x: x + 2.5),
    ("add", {}, [X, Y, X], lambda x, y, z: x + y + z),
    ("multiply", {"alpha": -2.0}, [X], lambda x: -2 * x),
    ("multiply", {}, [X, Y[:1, :1]], lambda x, y: x * y),
    ("average", {}, [X, Y], lambda x, y: (x + y) / 2),
    ("max", {}, [X, Y], np.maximum),
    ("min", {}, [X, Y], np.minimum),
    ("addBroadcastable", {}, [X, C[:, None, None]], np.add),
    ("subtractBroadcastable", {}, [X, C[:, None, None]], np.subtract),
    ("multiplyBroadcastable", {}, [X, C[:, None, None]], np.multiply),
    ("divideBroadcastable", {}, [X, POSITIVE], np.divide),
    ("floorDivBroadcastable", {}, [X, POSITIVE], np.floor_divide),
    ("modBroadcastable", {}, [X, POSITIVE], np.mod),
    ("powBroadcastable", {}, [POSITIVE, X], np.power),
    ("maxBroadcastable", {}, [X, C[:, None, None]], np.maximum),
    ("minBroadcastable", {}, [X, C[:, None, None]], np.minimum),
    ("equal", {"alpha": 2.0}, [np.round(X * 2)], lambda x: x == 2),
    ("notEqual", {}, [np.round(X), np.round(Y)], np.not_equal),
    ("lessThan", {"alpha": 0.25}, [X], lambda x: x < 0.25),
    ("lessEqual", {}, [np.round(X), np.round(Y)], np.less_equal),
    ("greaterThan", {}, [X, Y], np.greater),
    ("greaterEqual", {"alpha": 1.0}, [np.round(X)], lambda x: x >= 1),
    ("logicalAnd", {}, [np.round(X), np.round(Y)], np.logical_and),
    ("logicalOr", {}, [np.round(X), np.round(Y)], np.logical_or),
    ("logicalXor", {}, [np.round(X), np.round(Y)], np.logical_xor),
    ("logicalNot", {}, [np.round(X)], np.logical_not),
    ("whereBroadcastable", {}, [(X > 0).astype(np.float32), X, Y], np.where),
]

ROW = np.array([2, 0, 1], np.float32)
SHAPE: list[Case] = [
    ("reshapeStatic", {"targetShape": [2, -1]}, [X], lambda x: x.reshape(2, -1)),
    ("rankPreservingReshape", {"targetShape": [0, -1, 2, 5]}, [X], lambda x: x.reshape(2, 6, 2, 5)),
    ("reshapeLike", {}, [X, normal(6, 20)], lambda x, like: x.reshape(like.shape)),
    ("reshapeDynamic", {}, [X, np.array([6, 20], np.float32)], lambda x, shape: x.reshape(6, 20)),
    ("flattenTo2D", {"axis": 2}, [X], lambda x: x.reshape(6, 20)),
    ("squeeze", {"axes": [0, -1]}, [X[:1, ..., :1]], lambda x: x[0, ..., 0]),
    ("squeeze", {"squeezeAll": True}, [X[:1, :1, :1, :1]], lambda x: x.reshape(1)),
    ("expandDims", {"axes": [0, -1]}, [C], lambda x: x[None, :, None]),
    ("transpose", {"axes": [0, 2, 3, 1]}, [X], lambda x: x.transpose(0, 2, 3, 1)),
    ("concat", {}, [X, Y], lambda x, y: np.concatenate([x, y], 1)),
    ("concatND", {"axis": -1}, [X, Y], lambda x, y: np.concatenate([x, y], -1)),
    ("concatND", {"axis": 1, "interleave": True}, [X, Y], lambda x, y: np.stack([x, y], 2).reshape(2, 6, 4, 5)),
    ("stack", {"axis": 1}, [X, Y], lambda x, y: np.stack([x, y], 1)),
    ("slice", {"axis": "HEIGHT_AXIS", "startIndex": 1, "endIndex": -1}, [X], lambda x: x[:, :, 1:-1]),
    ("slice", {"axis": "WIDTH_AXIS", "endIndex": 5, "stride": 2}, [X], lambda x: x[..., :5:2]),
    (
        "sliceStatic",
        {
            "beginIds": [0, 1, 3, -2],
            "endIds": [0, 3, 0, 5],
            "strides": [1, 1, -1, 1],
            "beginMasks": [True, False, False, False],
            "endMasks": [True, False, True, False],
            "squeezeMasks": [False, False, False, False],
        },
        [X],
        lambda x: x[:, 1:3, 3::-1, -2:5],
    ),
    (
        "sliceDynamic",
        {"strides": [1, 1, 2, 1], "beginMasks": [False] * 4, "endMasks": [False, False, False, True]},
        [X, np.array([0, 1, 0, 2], np.float32), np.array([1, 3, 4, 0], np.float32)],
        lambda x, begin, end: x[0:1, 1:3, 0:4:2, 2:],
    ),
    ("tile", {"reps": [1, 2, 1, 3]}, [X], lambda x: np.tile(x, (1, 2, 1, 3))),
    ("gather", {"axis": 1}, [X, np.array([[2, 0], [-1, 1]], np.float32)], lambda x, i: x[:, i.astype(int)]),
    ("gatherND", {}, [X, np.array([[1, 2], [0, 0]], np.float32)], lambda x, i: x[[1, 0], [2, 0]]),
    (
        "gatherAlongAxis",
        {"axis": 1},
        [X[:, :, 0, 0], np.array([[2, 0], [1, 1]], np.float32)],
        lambda x, i: np.take_along_axis(x, i.astype(int), 1),
    ),
    ("reverse", {"reverseDim": [False, True, False, True]}, [X], lambda x: x[:, ::-1, :, ::-1]),
    ("argMax", {"axis": 1}, [X], lambda x: x.argmax(1, keepdims=True)),
    ("argMin", {"axis": -1, "removeDim": True}, [X], lambda x: x.argmin(-1)),
    ("argSort", {"axis": -1, "descending": True}, [X], lambda x: (-x).argsort(-1)),
    ("cumSum", {"axis": 1, "excludeFinalSum": True, "reverse": True}, [X], lambda x: x[:, ::-1].cumsum(1)[:, ::-1] - x),
    (
        "oneHot",
        {"oneHotVectorSize": 4, "axis": -1, "onValue": 2.0, "offValue": -1.0},
        [ROW],
        lambda r: np.where(r[:, None] == np.arange(4), 2.0, -1.0),
    ),
    ("rangeStatic", {"startValue": 1.0, "endValue": 7.0, "stepSizeValue": 2.0}, [], lambda: np.arange(1, 7, 2)),
    (
        "rangeDynamic",
        {"startValue": 1.0, "stepSizeValue": 0.5},
        [np.array([3], np.float32)],
        lambda e: np.arange(1, 3, 0.5),
    ),
    ("fillLike", {"value": 1.5}, [X], lambda x: np.full(x.shape, 1.5)),
    ("fillStatic", {"value": 1.5, "targetShape": [2, 3]}, [], lambda: np.full((2, 3), 1.5)),
    ("fillDynamic", {"value": 1.5}, [np.array([2, 3], np.float32)], lambda s: np.full((2, 3), 1.5)),
    ("broadcastToStatic", {"targetShape": [2, 3]}, [C], lambda c: np.broadcast_to(c, (2, 3))),
    ("broadcastToLike", {}, [C, normal(2, 3)], lambda c, like: np.broadcast_to(c, (2, 3))),
    ("broadcastToDynamic", {}, [C, np.array([2, 3], np.float32)], lambda c, shape: np.broadcast_to(c, (2, 3))),
    ("getShape", {}, [X], lambda x: np.array(x.shape)),
    (
        "constantPad",
        {"value": 2.0, "padAmounts": [0, 1, 2, 0]},
        [normal(2, 3)],
        lambda x: np.pad(x, ((0, 1), (2, 0)), constant_values=2.0),
    ),
    ("crop", {"cropAmounts": EDGES}, [IMAGE], lambda x: x[:, :, 1:-2, :-1]),
    (
        "reorganizeData",
        {"mode": "SPACE_TO_DEPTH", "blockSize": 2},
        [X[:, :, :, :4]],
        lambda x: x.reshape(2, 3, 2, 2, 2, 2).transpose(0, 3, 5, 1, 2, 4).reshape(2, 12, 2, 2),
    ),
    (
        "reorganizeData",
        {"mode": "DEPTH_TO_SPACE", "blockSize": 2},
        [IMAGE],
        lambda x: x.reshape(1, 2, 2, 1, 6, 7).transpose(0, 3, 4, 1, 5, 2).reshape(1, 1, 12, 14),
    ),
    ("reorganizeData", {"mode": "PIXEL_SHUFFLE", "blockSize": 2}, [IMAGE], tensors(lambda x: F.pixel_shuffle(x, 2))),
    ("matrixBandPart", {"numLower": 1, "numUpper": 0}, [X], lambda x: np.tril(x) - np.tril(x, -2)),
    ("lowerTriangular", {"k": 1}, [X], lambda x: np.tril(x, 1)),
    ("upperTriangular", {"k": -1}, [X], lambda x: np.triu(x, -1)),
    ("slidingWindows", {"axis": -1, "windowSize": 3, "step": 2}, [X], lambda x: np.stack([x[..., :3], x[..., 2:]], -2)),
]

REDUCTIONS: list[Case] = [
    (f"reduce{kind}", {"axes": [1, -1], "keepDims": True}, [POSITIVE], reference)
    for kind, reference in {
        "L1": lambda x: np.abs(x).sum((1, 3), keepdims=True),
        "L2": lambda x: np.sqrt((x**2).sum((1, 3), keepdims=True)),
        "LogSum": lambda x: np.log(x.sum((1, 3), keepdims=True)),
        "LogSumExp": lambda x: np.log(np.exp(x).sum((1, 3), keepdims=True)),
        "Max": lambda x: x.max((1, 3), keepdims=True),
        "Mean": lambda x: x.mean((1, 3), keepdims=True),
        "Min": lambda x: x.min((1, 3), keepdims=True),
        "Prod": lambda x: x.prod((1, 3), keepdims=True),
        "Sum": lambda x: x.sum((1, 3), keepdims=True),
        "SumSquare": lambda x: (x**2).sum((1, 3), keepdims=True),
    }.items()
] + [("reduceSum", {"reduceAll": True}, [X], lambda x: x.sum(keepdims=False).reshape(1))]

CASES = [*COMPUTE, *ACTIVATIONS, *UNARY, *ELEMENTWISE, *SHAPE, *REDUCTIONS]


@pytest.mark.parametrize(
    ("kind", "parameters", "inputs", "reference"), CASES, ids=[f"{case[0]}-{n}" for n, case in enumerate(CASES)]
)
def test_layer(
    kind: str, parameters: dict[str, Any], inputs: list[Array], reference: Callable[..., Any], tmp_path: Path
) -> None:
    (got,) = run(tmp_path / "m.mlmodel", kind, parameters, inputs)
    expected = np.asarray(reference(*inputs), dtype=np.float32)
    assert got.shape == expected.shape and got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_layers_with_several_outputs(tmp_path: Path) -> None:
    path = tmp_path / "m.mlmodel"
    for kind, parameters in (("splitND", {"axis": -1, "splitSizes": [2, 3]}), ("splitND", {"axis": 1, "numSplits": 3})):
        parts = run(path, kind, parameters, [X], outputs=len(parameters.get("splitSizes", [0, 0, 0])))
        np.testing.assert_array_equal(np.concatenate(parts, parameters["axis"]), X)
    first, *_ = run(path, "split", {"nOutputs": 3}, [X], outputs=3)
    np.testing.assert_array_equal(first, X[:, :1])
    values, indices = run(path, "topK", {"K": 2, "axis": -1, "useBottomK": True}, [X], outputs=2)
    np.testing.assert_array_equal(values, np.sort(X, -1)[..., :2])
    np.testing.assert_array_equal(np.take_along_axis(X, indices.astype(int), -1), values)


# --- recurrent layers: PyTorch's own cells, whose parameters are dealt out gate by gate ---------------------------

STEPS, BATCH, INPUTS, SIZE = 4, 2, 3, 5
SEQUENCE = normal(STEPS, BATCH, INPUTS)
SIGMOID, TANH = {"sigmoid": {}}, {"tanh": {}}


def five(array: Array) -> Array:
    return array[..., None, None]


def dealt(module: torch.nn.Module, gates: list[str], suffix: str = "_l0") -> dict[str, Any]:
    """Weights of a PyTorch cell by the names of the layer's gates; the two biases are added."""
    state = {name: value.detach().numpy() for name, value in module.named_parameters()}
    found = {}
    for position, gate in enumerate(gates):
        rows = slice(position * SIZE, (position + 1) * SIZE)
        found[f"{gate}WeightMatrix"] = weights(state[f"weight_ih{suffix}"][rows])
        found[f"{gate}RecursionMatrix"] = weights(state[f"weight_hh{suffix}"][rows])
        found[f"{gate}BiasVector"] = weights((state[f"bias_ih{suffix}"] + state[f"bias_hh{suffix}"])[rows])
    return found


LSTM_GATES = ["inputGate", "forgetGate", "blockInput", "outputGate"]


def lstm(*, bidirectional: bool = False) -> torch.nn.LSTM:
    torch.manual_seed(0)
    return torch.nn.LSTM(INPUTS, SIZE, bidirectional=bidirectional)


@pytest.mark.parametrize("forget_bias", [False, True])
def test_lstm_of_one_direction(forget_bias: bool, tmp_path: Path) -> None:
    cell = lstm()
    parameters = {
        "inputVectorSize": INPUTS,
        "outputVectorSize": SIZE,
        "activations": [SIGMOID, TANH, TANH],
        "params": {
            "sequenceOutput": True,
            "hasBiasVectors": True,
            "forgetBias": forget_bias,
            "cellClipThreshold": 50.0,
        },
        "weightParams": dealt(cell, LSTM_GATES),
    }
    h, c = normal(1, BATCH, SIZE, seed=2), normal(1, BATCH, SIZE, seed=3)
    inputs = [five(SEQUENCE), five(h), five(c)]
    got = run(tmp_path / "m.mlmodel", "uniDirectionalLSTM", parameters, inputs, outputs=3)
    with torch.no_grad():
        cell.bias_ih_l0[SIZE : 2 * SIZE] += float(forget_bias)
        y, (last_h, last_c) = cell(PAIR(SEQUENCE), (PAIR(h), PAIR(c)))
    for mine, theirs in zip(got, (y, last_h, last_c), strict=True):
        np.testing.assert_allclose(mine, five(theirs.numpy()), atol=1e-5)


def test_lstm_of_both_directions(tmp_path: Path) -> None:
    cell = lstm(bidirectional=True)
    parameters = {
        "inputVectorSize": INPUTS,
        "outputVectorSize": SIZE,
        "activationsForwardLSTM": [SIGMOID, TANH, TANH],
        "activationsBackwardLSTM": [SIGMOID, TANH, TANH],
        "params": {"sequenceOutput": True, "hasBiasVectors": True},
        "weightParams": [dealt(cell, LSTM_GATES), dealt(cell, LSTM_GATES, "_l0_reverse")],
    }
    got = run(tmp_path / "m.mlmodel", "biDirectionalLSTM", parameters, [five(SEQUENCE)], outputs=5)
    with torch.no_grad():
        y, (h, c) = cell(PAIR(SEQUENCE))
    for mine, theirs in zip(got, (y, h[:1], c[:1], h[1:], c[1:]), strict=True):
        np.testing.assert_allclose(mine, five(theirs.numpy()), atol=1e-5)


def test_simple_recurrence_in_reverse(tmp_path: Path) -> None:
    """Outputs stay in the order of computation."""
    torch.manual_seed(0)
    cell = torch.nn.RNN(INPUTS, SIZE, nonlinearity="relu")
    own = dealt(cell, [""])
    parameters = {
        "inputVectorSize": INPUTS,
        "outputVectorSize": SIZE,
        "activation": {"ReLU": {}},
        "sequenceOutput": True,
        "reverseInput": True,
        "hasBiasVector": True,
        "weightMatrix": own["WeightMatrix"],
        "recursionMatrix": own["RecursionMatrix"],
        "biasVector": own["BiasVector"],
    }
    got, _ = run(tmp_path / "m.mlmodel", "simpleRecurrent", parameters, [five(SEQUENCE)], outputs=2)
    with torch.no_grad():
        y, _ = cell(PAIR(SEQUENCE[::-1].copy()))
    np.testing.assert_allclose(got, five(y.numpy()), atol=1e-5)


def test_gru_resets_before_the_product(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    gates = {
        gate: tuple(rng.normal(size=shape).astype(np.float32) for shape in ((SIZE, INPUTS), (SIZE, SIZE), (SIZE,)))
        for gate in ("updateGate", "resetGate", "outputGate")
    }
    parameters: dict[str, Any] = {
        "inputVectorSize": INPUTS,
        "outputVectorSize": SIZE,
        "activations": [SIGMOID, TANH],
        "sequenceOutput": True,
        "hasBiasVectors": True,
    }
    for gate, parts in gates.items():
        for name, part in zip(("WeightMatrix", "RecursionMatrix", "BiasVector"), parts, strict=True):
            parameters[f"{gate}{name}"] = weights(part)
    got, last = run(tmp_path / "m.mlmodel", "gru", parameters, [five(SEQUENCE)], outputs=2)

    def gate_of(name: str, x: Array, h: Array) -> Array:
        w, r, b = gates[name]
        return x @ w.T + h @ r.T + b

    h, steps = np.zeros((BATCH, SIZE), np.float32), []
    for x in SEQUENCE:
        z, r = (1 / (1 + np.exp(-gate_of(name, x, h))) for name in ("updateGate", "resetGate"))
        h = (1 - z) * np.tanh(gate_of("outputGate", x, r * h)) + z * h
        steps.append(h)
    np.testing.assert_allclose(got, five(np.stack(steps)), atol=1e-5)
    np.testing.assert_allclose(last, five(h[None]), atol=1e-5)


# --- what is refused ----------------------------------------------------------------------------------------------


def test_every_rule_is_tested() -> None:
    other = {"splitND", "split", "topK", "uniDirectionalLSTM", "biDirectionalLSTM", "simpleRecurrent", "gru"}
    assert set(RULES) == {case[0] for case in CASES} | other


@pytest.mark.parametrize(
    ("kind", "parameters", "said"),
    [
        ("custom", {"className": "Mine"}, "'custom' .named 'only'. cannot be evaluated"),
        ("innerProduct", {"int8DynamicQuantize": True}, "quantized at run time"),
        ("concat", {"sequenceConcat": True}, "along sequences"),
        ("constantPad", {"padToGivenOutputSizeMode": True}, "given size"),
        ("crop", {"offset": [1, 1]}, "size of another input"),
        (
            "batchnorm",
            {"computeMeanVar": True, "channels": 1, "gamma": {"floatValue": [1]}, "beta": {"floatValue": [1]}},
            "for training",
        ),
        ("uniDirectionalLSTM", {"params": {"coupledInputAndForgetGate": True}}, "coupled gates"),
        ("simpleRecurrent", {"activation": {"softsign": {}}}, "activation softsign"),
    ],
)
def test_layers_and_forms_without_a_rule_are_named(
    kind: str, parameters: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedLayerError, match=said):
        run(tmp_path / "m.mlmodel", kind, parameters, [X])


def test_a_layer_that_refuses_its_inputs_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"layer 'addBroadcastable' \(output 'out0'\)"):
        run(tmp_path / "m.mlmodel", "addBroadcastable", {}, [X, normal(7)])
    with pytest.raises(EvaluationError, match="outside of"):
        run(tmp_path / "m.mlmodel", "gather", {"axis": 0}, [C, np.array([3], np.float32)])
    parameters = {"vocabSize": 7, "embeddingSize": 3, "weights": weights(TABLE.T)}
    with pytest.raises(EvaluationError, match="outside of"):
        run(tmp_path / "m.mlmodel", "embeddingND", parameters, [np.array([[7]], np.float32)])
