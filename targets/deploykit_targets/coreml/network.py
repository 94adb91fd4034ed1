"""The form before ML Programs: layers in one `.mlmodel`, for systems before iOS 15.

coremltools translates the same converted program into layers; their weights are then stored as float16, as integers of
8 bits per output channel, or as palettes. A network says nothing of the precision that it computes in (a CPU takes
float32, GPU and Neural Engine float16) and has no quantized activations, no scales per block, no state: precisions
that need these are refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.contract.errors import UnsupportedPrecisionError, UsageError
from deploykit.contract.precision import Precision
from deploykit_calibration.palette import palettize
from deploykit_targets.coreml import interface
from deploykit_targets.coreml.compress import PALETTE_BITS
from deploykit_targets.coreml.count import Counted
from deploykit_targets.coreml.mil_evaluator.milproto import parsed_model
from deploykit_targets.coreml.nn_evaluator.weights import stored
from deploykit_targets.coreml.package import DROPPED

if TYPE_CHECKING:
    from deploykit_calibration.prepared import Prepared
    from deploykit_targets.coreml.lower import Exported
    from deploykit_targets.coreml.target import CoreMLOptions

ENTRY = "model.mlmodel"
FORM = "neuralnetwork"
OS_FLOOR = {4: "iOS 13, macOS 10.15", 5: "iOS 14, macOS 11"}
"""Oldest systems that read each specification version; coremltools writes the oldest that the layers allow."""

OP_SET = {4: "iOS13", 5: "iOS14"}
NOTE = (
    "a neural network has no types: CPUs compute in float32, other units in float16; counted is how weights are stored"
)

_PRECISIONS = (
    Precision.FP16,
    Precision.FP32,
    Precision.INT8_WEIGHT_ONLY,
    Precision.INT6_PALETTE,
    Precision.INT4_PALETTE,
)
_COMPRESSED = frozenset({"batchedMatmul", "convolution", "embeddingND", "innerProduct"})
_RECURRENT = frozenset({"biDirectionalLSTM", "gru", "simpleRecurrent", "uniDirectionalLSTM"})


def check(precision: Precision, options: CoreMLOptions) -> None:
    """Refuse what this form does not have.

    Raises:
        UnsupportedPrecisionError: names the precisions that it has.
        UsageError: an op set was asked for.
    """
    if precision not in _PRECISIONS:
        raise UnsupportedPrecisionError(
            f"a Core ML neural network has no {precision}; it has {', '.join(_PRECISIONS)}",
            hint='leave out form="neuralnetwork" (iOS 16 and later)',
        )
    if options.deployment_target:
        raise UsageError(
            f"deployment_target={options.deployment_target!r} is an op set of ML Programs",
            hint='leave it out with form="neuralnetwork": the oldest system that reads the layers is recorded',
        )


def converted(prepared: Prepared, lowered: Exported) -> Any:
    """The model as coremltools makes it, with float32 weights."""
    import coremltools

    options: CoreMLOptions = prepared.options
    inputs, outputs = interface.types(prepared.captured, options)
    return coremltools.convert(
        lowered.program,
        inputs=inputs,
        outputs=outputs,
        classifier_config=interface.classifier(options),
        minimum_deployment_target=coremltools.target.iOS14,
        convert_to=FORM,
        skip_model_load=True,
    )


def compressed(model: Any, precision: Precision, *, threshold: int) -> Any:
    """The model with its weights as the precision has them; what is not compressed becomes float16.

    Args:
        threshold: weights with fewer elements are not compressed to integers or palettes.
    """
    from coremltools.models.neural_network.quantization_utils import quantize_weights

    if precision is Precision.FP32:
        return model
    selector = _selector(threshold)
    if precision is Precision.INT8_WEIGHT_ONLY:
        model = quantize_weights(model, 8, "linear_symmetric", selector=selector)
    elif precision in PALETTE_BITS:
        bits = PALETTE_BITS[precision]
        model = quantize_weights(
            model, bits, "custom_lut", selector=selector, lut_function=lambda n, weight: palettize(weight, n)
        )
    return quantize_weights(model, 16)


def _selector(threshold: int) -> Any:
    from coremltools.models.neural_network.quantization_utils import QuantizedLayerSelector

    class Selector(QuantizedLayerSelector):  # type: ignore[misc]
        """Layers that multiply, by the number of their weights; biases stay as they are."""

        def do_quantize(self, layer: Any, weight_param: str | None = None, **_: Any) -> bool:
            kind = layer.WhichOneof("layer")
            if kind in _RECURRENT:
                return True
            return kind in _COMPRESSED and weight_param != "bias" and _elements(layer, kind) >= threshold

    return Selector()


def _elements(layer: Any, kind: str) -> int:
    """Number of a layer's weights that are still float32."""
    return len(getattr(layer, kind).weights.floatValue)


def write(model: Any, folder: Path) -> Path:
    """Write `model.mlmodel`: the same model gives the same bytes.

    Returns:
        Path of the file.
    """
    spec = model.get_spec()
    for key in DROPPED:
        spec.description.metadata.userDefined.pop(key, None)
    path = folder / ENTRY
    path.write_bytes(spec.SerializeToString(deterministic=True))
    return path


def count(path: Path, precision: Precision, made_for: Mapping[str, str]) -> tuple[Counted, dict[str, Any]]:
    """Count a written file: how each layer's weights are stored, and what else is recorded of it.

    Args:
        precision: the precision that layers without weights are taken to be in, float16 or float32.
        made_for: name of a layer or of its output -> captured node.
    """
    model = parsed_model(path)
    layers = getattr(model, model.WhichOneof("Type")).layers
    counted = Counted(ops=dict(sorted(Counter(layer.WhichOneof("layer") for layer in layers).items())))
    own = "float32" if precision is Precision.FP32 else "float16"
    weight_bytes = 0
    for layer in layers:
        kind = layer.WhichOneof("layer")
        found = [message for message in _weight_messages(getattr(layer, kind)) if stored(message)]
        weight_bytes += sum(message.ByteSize() for message in found)
        name = next((made_for[key] for key in (layer.name, *layer.output) if key in made_for), None)
        if name is None or (name in counted.executed and not found):
            continue
        form = stored(found[0]) if found else own
        floating = form in ("float16", "float32")
        counted.executed[name] = form if floating else own
        if not floating:
            counted.held[name] = form
    version = model.specificationVersion
    facts = {
        "form": FORM,
        "op_set": OP_SET[version],
        "os_floor": OS_FLOOR[version],
        "specification_version": version,
        "weight_bytes": weight_bytes,
    }
    return counted, facts


def _weight_messages(parameters: Any) -> list[Any]:
    """Every `WeightParams` of a layer, the weights before the biases."""
    found: list[Any] = []
    for field, value in parameters.ListFields():
        if field.message_type is None:
            continue
        items = [value] if hasattr(value, "ListFields") else list(value)
        if field.message_type.name == "WeightParams":
            found += items
        elif field.message_type.name == "LSTMWeightParams":
            found += [message for item in items for message in _weight_messages(item)]
    return found
