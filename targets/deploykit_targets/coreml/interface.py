"""Inputs and outputs of an ML Program: names, types, shapes, images and labels, from the captured specs and options.

Names are always set. Arrays stay float32 (int32 for integers) at the border, whatever the program computes in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.contract.errors import UsageError
from deploykit_targets.coreml.prescan import DTYPES

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit.contract.tensors import TensorSpec
    from deploykit_targets.coreml.target import CoreMLOptions

PROBABILITIES = "classLabel_probs"
"""What coremltools calls the probabilities of a classifier, beside `classLabel`."""

_PLANES = {"RGB": 3, "BGR": 3, "GRAYSCALE": 1}


def check(captured: CapturedModel, options: CoreMLOptions) -> None:
    """Refuse options that do not fit the model.

    Raises:
        UsageError: says which option and what would fit.
    """
    specs = {spec.name: spec for spec in captured.inputs}
    if options.image_input:
        _check_image(specs, options)
    if options.class_labels:
        _check_labels(captured.outputs, options.class_labels)
    for name, shapes in options.enumerated_shapes.items():
        if name not in specs:
            raise UsageError(f"enumerated_shapes names {name!r}; the inputs are {list(specs)}")
        if not shapes:
            raise UsageError(f"enumerated_shapes lists no shape for {name!r}", hint="leave the input out")
        for shape in shapes:
            if not specs[name].accepts(tuple(shape)):
                raise UsageError(
                    f"enumerated_shapes has {tuple(shape)}, which does not fit {specs[name]}",
                    hint="capture the axes that vary as dynamic: dynamic_batch=True or dynamic_shapes=",
                )
    if options.max_size < 1 or options.block_size < 1 or options.weight_threshold < 1:
        raise UsageError("max_size, block_size and weight_threshold are at least 1")


def _check_image(specs: dict[str, TensorSpec], options: CoreMLOptions) -> None:
    spec = specs.get(options.image_input)
    planes = _PLANES[options.image_color]
    if spec is None:
        raise UsageError(f"image_input is {options.image_input!r}; the inputs are {list(specs)}")
    if len(spec.shape) != 4 or spec.shape[:2] != (1, planes) or spec.dtype != "float32":
        raise UsageError(
            f"image_input {spec} cannot be a {options.image_color} image",
            hint=f"it must be float32[1, {planes}, height, width]; image_color= has the other kinds",
        )
    finite = all(map(math.isfinite, (options.image_scale, *options.image_bias)))
    if len(options.image_bias) not in (1, planes) or not options.image_scale or not finite:
        raise UsageError(f"image_bias has one value, or {planes}; image_scale is not 0; all are finite")


def _check_labels(outputs: tuple[TensorSpec, ...], labels: tuple[str, ...]) -> None:
    if len(set(labels)) != len(labels):
        twice = sorted({label for label in labels if labels.count(label) > 1})
        raise UsageError(f"class_labels has {twice[0]!r} twice; Core ML gives a probability for each label by its name")
    if len(outputs) != 1 or len(outputs[0].shape) != 2 or outputs[0].shape != (1, len(labels)):
        listed = ", ".join(map(str, outputs))
        raise UsageError(
            f"class_labels has {len(labels)} labels, and the outputs are {listed}",
            hint=f"a classifier has one output, float32[1, {len(labels)}]",
        )


def types(captured: CapturedModel, options: CoreMLOptions) -> tuple[list[Any], list[Any] | None]:
    """Input and output types for `coremltools.convert`; a classifier's outputs are named afterwards."""
    import coremltools

    inputs = [_input(captured, spec, options) for spec in captured.inputs]
    if options.class_labels:
        return inputs, [coremltools.TensorType(name=captured.outputs[0].name, dtype=np.float32)]
    outputs = [
        coremltools.TensorType(name=spec.name, dtype=np.dtype(DTYPES.get(spec.dtype, "float32")).type)
        if spec.dtype in DTYPES
        else coremltools.TensorType(name=spec.name)
        for spec in captured.outputs
    ]
    return inputs, outputs


def classifier(options: CoreMLOptions) -> Any:
    """What `coremltools.convert` wants to know of a classifier; None for other models."""
    import coremltools

    return coremltools.ClassifierConfig(list(options.class_labels)) if options.class_labels else None


def _input(captured: CapturedModel, spec: TensorSpec, options: CoreMLOptions) -> Any:
    import coremltools

    if spec.name == options.image_input:
        bias = [float(value) for value in options.image_bias]
        planes = _PLANES[options.image_color]
        values = bias[0] if planes == 1 else bias * (planes // len(bias))
        layout = getattr(coremltools.colorlayout, options.image_color)
        return coremltools.ImageType(
            name=spec.name, shape=spec.shape, scale=options.image_scale, bias=values, color_layout=layout
        )
    shape = tuple(_size(captured, spec, axis, options) for axis in range(len(spec.shape)))
    return coremltools.TensorType(name=spec.name, shape=shape, dtype=np.dtype(DTYPES[spec.dtype]).type)


def _size(captured: CapturedModel, spec: TensorSpec, axis: int, options: CoreMLOptions) -> Any:
    size = spec.shape[axis]
    if isinstance(size, int):
        return size
    import coremltools

    low, high, example = _range(captured, spec, axis, options)
    return coremltools.RangeDim(lower_bound=low, upper_bound=high, default=example, symbol=None)


def _range(captured: CapturedModel, spec: TensorSpec, axis: int, options: CoreMLOptions) -> tuple[int, int, int]:
    """Bounds of a dynamic axis, and its size in the example inputs."""
    low, high = captured.symbol_ranges.get(str(spec.shape[axis]), (1, None))
    example = int(captured.example_feeds()[spec.name].shape[axis])
    return low, max(options.max_size, example) if high is None else high, example


def batch_sizes(captured: CapturedModel, options: CoreMLOptions, wanted: Iterable[int]) -> list[int]:
    """Those of the `wanted` sizes of axis 0 that the model takes wherever that axis is dynamic."""
    found = list(wanted)
    for spec in captured.inputs:
        if not spec.shape or isinstance(spec.shape[0], int):
            continue
        low, high, _ = _range(captured, spec, 0, options)
        listed = {shape[0] for shape in options.enumerated_shapes.get(spec.name, ())}
        found = [size for size in found if low <= size <= high and (not listed or size in listed)]
    return found


def finished(model: Any, captured: CapturedModel, options: CoreMLOptions) -> Any:
    """The model with its enumerated shapes, which coremltools itself sets for traced models only."""
    if not options.enumerated_shapes:
        return model
    spec = model.get_spec()
    for feature in spec.description.input:
        shapes = options.enumerated_shapes.get(feature.name)
        if shapes:
            array = feature.type.multiArrayType
            array.ClearField("shapeRange")
            array.ClearField("enumeratedShapes")
            array.shape[:] = shapes[0]
            for shape in shapes:
                array.enumeratedShapes.shapes.add().shape.extend(shape)
    import coremltools

    return coremltools.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True)
