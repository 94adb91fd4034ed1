"""`gptq`: weights are rounded so that a layer's output changes least, and not each to its nearest value.

Layers are rounded in execution order, each from what it reads behind those before it (`weight_rounding`). A shift of
the output's mean goes into the bias, where the layer has one of its own. Only the float graph changes, and only to
values that the target's own quantiser leaves as they are (`weight_grid`), so one algorithm serves every target.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from deploykit.contract.recipe import FLOAT
from deploykit_calibration.algorithms import GRID, SAMPLES, Algorithm
from deploykit_calibration.in_step import affordable, run_in_step
from deploykit_calibration.reuse import once, told_by
from deploykit_calibration.reweigh import with_weights
from deploykit_calibration.weight_rounding import round_for_inputs
from deploykit_calibration.weighted_layers import WeightedLayer, rows_of_weights, value_of, weighted_layers

if TYPE_CHECKING:
    from torch.fx import Node

    from deploykit.contract.formats import TensorScheme
    from deploykit_calibration.algorithms import Samples
    from deploykit_calibration.in_step import Choose
    from deploykit_calibration.prepared import Prepared


def round_weights(prepared: Prepared, samples: Samples) -> Prepared:
    """The same model with rounded weights in the layers whose weights the target rounds."""
    captured, few = prepared.captured, affordable(prepared.captured, samples)
    layers = _rounded_layers(prepared)
    counts = Counter(layer.weight for layer in layers)
    shared = {layer.weight: replace(layer, bias="") for layer in layers if counts[layer.weight] > 1}
    replaced: dict[str, Tensor] = {}
    for name, rows in rows_of_weights(captured, few, [layer for layer in layers if layer.weight in shared]):
        _round(prepared, shared[name], replaced, rows, rows)
    own = [layer for layer in layers if layer.weight not in shared]
    seen = _what_they_see(prepared, own, shared, few)
    run_in_step(captured, few, replaced, {each.op: _step(prepared, each, replaced, seen[each.op], few) for each in own})
    return replace(prepared, captured=with_weights(captured, replaced)) if replaced else prepared


def _what_they_see(
    prepared: Prepared, own: Sequence[WeightedLayer], shared: Mapping[str, WeightedLayer], samples: Samples
) -> dict[Node, str]:
    """By layer, what tells all that its rounding follows from, without a look at a value.

    That is the model, the samples and the scheme; the layer and its form; and what was rounded before on the way to
    what it reads. Layers that no other candidate's choice is before are rounded as they were for that one.
    """
    begin = repr((prepared.captured.fingerprint, told_by(samples), prepared.scheme))
    rounded = {layer.op: layer for layer in own}
    weights = {name: _told("shared", begin, name, repr(_form(prepared, layer))) for name, layer in shared.items()}
    before: dict[Node, str] = {}
    found: dict[Node, str] = {}
    for node in prepared.captured.graph_module.graph.nodes:
        layer = rounded.get(node)
        if layer is not None:
            told = _told(begin, node.name, layer.bias, repr(_form(prepared, layer)), before.get(layer.source, ""))
            found[node] = weights[layer.weight] = told
            weights |= {layer.bias: told} if layer.bias else {}
        reads = {
            weights.get(str(x.target), "") if x.op == "get_attr" else before.get(x, "") for x in node.all_input_nodes
        }
        told_by_reads = sorted(reads - {""})
        if told_by_reads and node.op == "call_function":
            before[node] = told_by_reads[0] if len(told_by_reads) == 1 else _told(*told_by_reads)
    return found


def _told(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _rounded_layers(prepared: Prepared) -> list[WeightedLayer]:
    """Layers whose weights become integers with a zero-point in the middle; palettes have no grid."""
    if not prepared.scheme.quantizes:
        return []
    placed = {layer.name for layer in prepared.layers if layer.precision != FLOAT}
    layers = (layer for layer in weighted_layers(prepared.captured) if layer.op.name in placed)
    forms = ((layer, _form(prepared, layer)) for layer in layers)
    return [layer for layer, form in forms if form.symmetric and not form.is_float and not form.is_palette]


def _form(prepared: Prepared, layer: WeightedLayer) -> TensorScheme:
    return prepared.placed.forms.get(layer.op.name, prepared.scheme.weight)


def _step(
    prepared: Prepared, layer: WeightedLayer, replaced: dict[str, Tensor], key: str, samples: Samples
) -> tuple[Node, Choose]:
    def choose(plain: Sequence[Tensor], other: Sequence[Tensor]) -> None:
        def made() -> dict[str, Tensor]:
            wanted, found = layer.rows_of(plain), dict[str, Tensor]()
            _round(prepared, layer, found, wanted, wanted if plain is other else layer.rows_of(other))
            return found

        replaced.update(once(("gptq", layer.weight), key, made, held=samples))

    return layer.source, choose


def _round(prepared: Prepared, layer: WeightedLayer, replaced: dict[str, Tensor], wanted: Tensor, seen: Tensor) -> None:
    """Put weight and bias of one layer in place."""
    weight = value_of(prepared.captured, layer.weight)
    form = _form(prepared, layer)
    assert form is not None
    scheme = replace(prepared.scheme, weight=form)
    made = round_for_inputs(layer.matrices(weight), scheme, wanted, seen, centred=bool(layer.bias))
    replaced[layer.weight] = layer.in_place_of(weight, made.weight)
    if layer.bias:
        bias = value_of(prepared.captured, layer.bias)
        replaced[layer.bias] = (bias.double() - made.shift.reshape(bias.shape)).float()


GPTQ = Algorithm(
    "gptq",
    round_weights,
    cost="two float runs on some of the samples and a factorisation per layer: seconds",
    needs=frozenset({SAMPLES}),
    rounds=True,
    acts_on=frozenset({GRID}),
    source="Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers (2022)",
)
