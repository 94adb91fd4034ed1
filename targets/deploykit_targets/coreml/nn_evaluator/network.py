"""`load` and `Network`: a neural-network file as its users see it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from deploykit.contract.errors import ArtifactError
from deploykit_targets.coreml.mil_evaluator.errors import EvaluationError
from deploykit_targets.coreml.mil_evaluator.milproto import parsed_model
from deploykit_targets.coreml.mil_evaluator.specs import ValueSpec, chosen_inputs, described, named
from deploykit_targets.coreml.nn_evaluator import layers_compute, layers_elementwise, layers_recurrent, layers_shape
from deploykit_targets.coreml.nn_evaluator.errors import UnsupportedLayerError
from deploykit_targets.coreml.nn_evaluator.layer import FormError, Function, LayerTable

Array = np.ndarray[Any, Any]
KINDS: Final = ("neuralNetwork", "neuralNetworkClassifier", "neuralNetworkRegressor")
"""Model types that hold layers."""

RULES: Final[LayerTable] = {
    **layers_compute.OPS,
    **layers_elementwise.OPS,
    **layers_recurrent.OPS,
    **layers_shape.OPS,
}
"""Evaluation rule of every layer that has one."""

_EXACT = 1  # arrays keep their own rank; before iOS 13 they were squeezed into five axes
_DTYPES = {65568: "fp32", 65600: "fp64", 131104: "int32", 65552: "fp16"}
_REFUSALS = (RuntimeError, ValueError, IndexError, TypeError, KeyError, OverflowError)


@dataclass(frozen=True, slots=True)
class _Step:
    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    function: Function
    frees: tuple[str, ...] = ()


@dataclass(eq=False)
class Network:
    """A neural network, ready to be evaluated.

    Attributes:
        specification_version: 4 is iOS 13, 5 is iOS 14.
        inputs, outputs: in the file's order. The shape of an output is () where the file does not say it; class
            probabilities are a vector in the order of `classes`.
    """

    specification_version: int
    inputs: tuple[ValueSpec, ...]
    outputs: tuple[ValueSpec, ...]
    _steps: tuple[_Step, ...] = field(repr=False)
    _scalers: Mapping[str, tuple[float, Tensor]] = field(repr=False)
    _probabilities: str = ""

    def ops(self) -> Mapping[str, int]:
        """How many layers of each kind there are."""
        return dict(Counter(step.kind for step in self._steps).most_common())

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Evaluate the network.

        Args:
            feeds: input name -> array. An image input takes an image, or the tensor (1, planes, height, width) of its
                pixel values.
        Returns:
            output name -> array: float32, and a class label as an array of rank 0.
        Raises:
            UsageError: an input is missing, unknown or of the wrong shape or type.
            EvaluationError: a layer refused the values that reached it.
        """
        values = self._tensors(feeds)
        with torch.inference_mode():
            for step in self._steps:
                values.update(zip(step.outputs, _results(step, values), strict=False))
                for name in step.frees:
                    del values[name]
            return {spec.name: self._output(spec, values) for spec in self.outputs}

    def _tensors(self, feeds: Mapping[str, Array]) -> dict[str, Tensor]:
        tensors = {}
        for spec, value in chosen_inputs(self.inputs, feeds):
            array = torch.from_numpy(np.array(value, dtype=np.float32))
            scale, bias = self._scalers.get(spec.name, (1.0, torch.zeros(())))
            tensors[spec.name] = array * scale + bias if spec.name in self._scalers else array
        return tensors

    def _output(self, spec: ValueSpec, values: Mapping[str, Tensor]) -> Array:
        if spec.dtype == "fp32":
            array: Array = values[spec.name].numpy().copy()
            return array.reshape(-1) if spec.classes else array
        likeliest = int(values[self._probabilities].argmax())
        label = self.outputs[0].classes[likeliest]
        return np.array(label)


def load(path: str | Path) -> Network:
    """Load a neural network.

    Args:
        path: an .mlmodel, made by anyone, of iOS 13 or later.
    Raises:
        MissingDependencyError: coremltools 9.0 is not installed.
        ArtifactError: the file is damaged, is no neural network, or has the shapes of systems before iOS 13.
        UnsupportedLayerError: it holds a layer without a rule.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"there is no model file at {path}")
    model = parsed_model(path)
    kind = model.WhichOneof("Type")
    if kind not in KINDS:
        hint = "run the .mlpackage that it is part of" if kind == "mlProgram" else None
        raise ArtifactError(
            f"{path} holds {f'a model of type {kind}' if kind else 'nothing'}, not a neural network", hint=hint
        )
    network = getattr(model, kind)
    images = any(entry.type.WhichOneof("Type") == "imageType" for entry in model.description.input)
    if network.arrayInputShapeMapping != _EXACT or (images and network.imageInputShapeMapping != _EXACT):
        raise ArtifactError(f"{path} is a network for systems before iOS 13, whose shape rules are not evaluated")
    inputs = tuple(_input(entry) for entry in model.description.input)
    outputs, probabilities = _outputs(model.description, network, kind)
    steps = _steps(network.layers, {*(spec.name for spec in outputs), probabilities})
    scalers = {entry.featureName or inputs[0].name: _scaler(entry, named(inputs)) for entry in network.preprocessing}
    return Network(model.specificationVersion, inputs, outputs, steps, scalers, probabilities)


def _steps(layers: Sequence[Any], kept: set[str]) -> tuple[_Step, ...]:
    """The layers with their weights decoded, each with the values that no later one reads."""
    last: dict[str, int] = {}
    for position, layer in enumerate(layers):
        last.update(dict.fromkeys([*layer.output, *layer.input], position))
    found = []
    for position, layer in enumerate(layers):
        kind = layer.WhichOneof("layer") or "empty"
        if kind not in RULES:
            raise UnsupportedLayerError(kind, name=layer.name)
        try:
            function = RULES[kind](getattr(layer, kind))
        except FormError as refused:
            raise UnsupportedLayerError(kind, name=layer.name, reason=str(refused)) from refused
        touched = dict.fromkeys([*layer.output, *layer.input])
        frees = tuple(name for name in touched if last[name] == position and name not in kept)
        found.append(_Step(kind, layer.name, tuple(layer.input), tuple(layer.output), function, frees))
    return tuple(found)


def _results(step: _Step, values: Mapping[str, Tensor]) -> Sequence[Tensor]:
    """The outputs of a layer.

    Raises:
        EvaluationError: it refused its inputs, or reads what no layer writes.
    """
    try:
        result = step.function(*(values[name] for name in step.inputs))
    except _REFUSALS as error:
        output = step.outputs[0] if step.outputs else step.name
        raise EvaluationError(
            f"{type(error).__name__}: {error}", op_type=step.kind, output=output, what="layer"
        ) from error
    return (result,) if isinstance(result, Tensor) else result


def _input(entry: Any) -> ValueSpec:
    kind = entry.type
    if kind.WhichOneof("Type") == "imageType":
        image = kind.imageType
        planes = 1 if image.ColorSpace.Name(image.colorSpace).startswith("GRAYSCALE") else 3
        spec = described(ValueSpec(entry.name, "fp32", (1, planes, image.height, image.width)), kind)
    else:
        array = kind.multiArrayType
        spec = described(ValueSpec(entry.name, _DTYPES.get(array.dataType, "fp32"), tuple(array.shape)), kind)
    return spec.widened()


def _outputs(description: Any, network: Any, kind: str) -> tuple[tuple[ValueSpec, ...], str]:
    """The outputs, and for a classifier the value that holds its probabilities."""
    if kind != "neuralNetworkClassifier":
        specs = (ValueSpec(e.name, "fp32", tuple(e.type.multiArrayType.shape)) for e in description.output)
        return tuple(specs), ""
    labels = network.WhichOneof("ClassLabels")
    classes = tuple(getattr(network, labels).vector) if labels else ()
    name = network.labelProbabilityLayerName or description.predictedProbabilitiesName
    label = ValueSpec(description.predictedFeatureName, "str" if labels == "stringClassLabels" else "int64", ())
    return (ValueSpec(name, "fp32", (len(classes),), classes=classes), label), name


def _scaler(entry: Any, inputs: Mapping[str, ValueSpec]) -> tuple[float, Tensor]:
    """Scale and bias of an image's planes.

    Raises:
        ArtifactError: a mean image, or a scaler of what is no image.
    """
    spec = inputs.get(entry.featureName) or next(iter(inputs.values()))
    if entry.WhichOneof("preprocessor") != "scaler" or spec.image is None:
        raise ArtifactError("the network has a preprocessing other than scale and bias of an image")
    scaler = entry.scaler
    colors = {"R": scaler.redBias, "G": scaler.greenBias, "B": scaler.blueBias}
    biases = [colors[plane] for plane in spec.image.color] if spec.image.channels == 3 else [scaler.grayBias]
    return scaler.channelScale or 1.0, torch.tensor(biases).reshape(1, -1, 1, 1)
