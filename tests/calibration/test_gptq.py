"""`gptq`: rows are what layers multiply, the target's quantiser leaves what was rounded, and outputs change less."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploykit import pipeline
from deploykit.capture import capture
from deploykit.contract.decibels import sqnr_db
from deploykit.contract.formats import INT4_CHANNELS, INT8_SYMMETRIC, PerGroup
from deploykit.contract.recipe import WIDE
from deploykit.plugin.registry import toolchain
from deploykit_calibration.algorithms import Algorithm, _registered, apply, register
from deploykit_calibration.in_step import affordable, run_in_step
from deploykit_calibration.prepare import prepare
from deploykit_calibration.prepared import Prepared
from deploykit_calibration.reweigh import with_weights
from deploykit_calibration.sensitivity import sensitivity
from deploykit_calibration.simulate import values
from deploykit_calibration.weight_grid import grid_of
from deploykit_calibration.weight_rounding import round_for_inputs
from deploykit_calibration.weighted_layers import rows_of_weights, value_of, weighted_layers
from deploykit_calibration.weights import rounded_weight, weight_quant
from deploykit_targets._schemes.x86 import ONNX_X86

FORMS = {
    "channels": ONNX_X86,
    "7 bits": replace(ONNX_X86, reduce_range=True),
    "float16 scales": replace(ONNX_X86, float16_scales=True),
    "one scale": replace(ONNX_X86, weight=INT8_SYMMETRIC),
}


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Every(nn.Module):
    """A layer of each kind that is rounded."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(6, 12, (3, 5), stride=2, padding=(1, 2), groups=3, dilation=(1, 2))
        self.b = nn.Conv2d(12, 12, 3, padding="same", groups=12, bias=False)
        self.c, self.d = nn.Conv1d(12, 4, 3, padding=1), nn.Linear(49, 7)
        self.e = nn.Parameter(draw(5, 7, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(self.b(self.a(x)).flatten(2))) @ self.e


def test_rows_are_what_the_matrices_multiply() -> None:
    x = draw(0, 2, 6, 14, 17)
    captured = capture(Every().eval(), example_inputs=(x,))
    seen = dict(values(captured.graph_module, [x], {node.name for node in captured.graph_module.graph.nodes}))
    layers = list(weighted_layers(captured))
    assert [(layer.kind, layer.groups) for layer in layers] == [
        *(("conv", 3), ("conv", 12), ("conv", 1)),
        *(("linear", 1), ("linear", 1)),
    ]
    for layer in layers:
        weight, (want,) = value_of(captured, layer.weight), [seen[layer.op.name]]
        want = (want.transpose(0, 1) if layer.kind == "conv" else want.movedim(-1, 0)).flatten(1)
        product = (layer.matrices(weight) @ layer.rows_of([seen[layer.source.name]]).transpose(1, 2)).flatten(0, 1)
        bias = value_of(captured, layer.bias)[:, None] if layer.bias else 0.0
        torch.testing.assert_close(product + bias, want, rtol=1e-4, atol=1e-5)  # sums in another order
        assert torch.equal(layer.in_place_of(weight, layer.matrices(weight)), weight)
        few = layer.rows_of([seen[layer.source.name]], share=4096)
        assert few.shape[1] <= 2 and torch.equal(few, layer.rows_of([seen[layer.source.name]], share=4096))


@pytest.mark.parametrize("form", FORMS)
def test_the_target_rounds_nothing_again(form: str) -> None:
    scheme, weight = FORMS[form], draw(1, 1, 9, 40) * torch.logspace(-3, 1, 9)[:, None]
    weight[0, 3] = 0.0
    seen = draw(2, 1, 60, 40)
    made = round_for_inputs(weight, scheme, seen + 0.1, seen, centred=True).weight[0]
    quant = weight_quant(made, 0, scheme)
    # the last bit of code x scale; of a scale that was rounded up to float16, for the element that it came from
    torch.testing.assert_close(quant.rounded(made), made, rtol=2e-3 if form == "float16 scales" else 1e-6, atol=0.0)
    assert not torch.equal(quant.quantize(made), weight_quant(weight[0], 0, scheme).quantize(weight[0]))
    own = grid_of(weight, scheme)
    torch.testing.assert_close(
        own.nearest()[0], weight_quant(weight[0], 0, scheme).rounded(weight[0]), rtol=1e-6, atol=0.0
    )


WEIGHT_ONLY = [
    *(("x86-cpu", "int4-weight-only"), ("x86-cpu", "int8-weight-only"), ("x86-cpu", "int8-dynamic")),
    *(("rtx-4090", "int4-weight-only"), ("iphone-15", "int4-weight-only"), ("iphone-15", "int8-weight-only")),
    *(("android", "int4-weight-only"), ("android", "int8-dynamic")),
]


@pytest.mark.parametrize(("target", "precision"), WEIGHT_ONLY)
def test_forms_of_weights_alone_are_those_of_the_target(target: str, precision: str) -> None:
    """Blocks of every size, inputs that they do not divide, taps that share a scale, float16 scales and weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(40, 64, 3), nn.Conv1d(64, 64, 3, groups=64), nn.Linear(8, 128), nn.Linear(128, 100))
    mix = draw(4, 12, 6, 12)
    asked = pipeline.request(target, precision)
    captured = capture(model.eval(), example_inputs=(draw(3, 12, 40, 6) @ mix,))
    scheme = toolchain(asked.toolchain).scheme(asked, captured)
    samples = [captured.feeds(draw(k, 12, 40, 6) @ mix) for k in range(5, 13)]
    plain = prepare(asked, captured, scheme, samples=samples)
    made = prepare(replace(asked, algorithms=("gptq",)), captured, scheme, samples=samples)
    forms = made.placed.forms
    layers = [layer for layer in weighted_layers(made.captured) if layer.op.name in forms]
    assert layers and {layer.precision for layer in made.layers} == {layer.precision for layer in plain.layers}
    for layer in layers:
        weight, own = value_of(made.captured, layer.weight), replace(scheme, weight=forms[layer.op.name])
        again = rounded_weight(weight, layer.axis, own)
        step = float(weight.abs().max()) / 2 ** (own.weight.bits - 1)
        assert float((again - weight).abs().max()) < 0.1 * step, layer.op.name  # float16: 2^-11 of 127 steps
        assert not torch.equal(rounded_weight(value_of(captured, layer.weight), layer.axis, own), again)


def outputs_db(weight: Tensor, made: Tensor, rows: Tensor) -> float:
    want = rows @ weight.transpose(1, 2)
    return sqnr_db(float(want.square().sum()), float((rows @ made.transpose(1, 2) - want).square().sum()))


def test_outputs_change_less_than_by_rounding_to_the_nearest() -> None:
    blocks = replace(ONNX_X86, weight=replace(INT4_CHANNELS, granularity=PerGroup(16)))
    weight, mix = draw(3, 2, 8, 40), draw(4, 2, 6, 40)
    seen, fresh = draw(5, 2, 200, 6) @ mix, draw(6, 2, 200, 6) @ mix
    nearest = grid_of(weight, blocks).nearest()
    made = round_for_inputs(weight, blocks, seen, seen, centred=False)
    assert outputs_db(weight, made.weight, fresh) > outputs_db(weight, nearest, fresh) + 6
    # what inputs lack, because layers before are rounded, is made good as far as the weight can
    lacking = seen * 0.9
    repaired = round_for_inputs(weight, blocks, seen, lacking, centred=False).weight
    kept = outputs_db(weight, repaired * 0.9, fresh)
    assert kept > outputs_db(weight, made.weight * 0.9, fresh) + 3


def test_a_shift_of_the_mean_is_said() -> None:
    weight, rows = draw(7, 2, 3, 5), draw(8, 2, 50, 5) + 3.0
    made = round_for_inputs(weight, replace(ONNX_X86, reduce_range=True), rows, rows, centred=True)
    shift = ((made.weight - weight) @ rows.mean(1)[:, :, None]).flatten()
    torch.testing.assert_close(made.shift.float(), shift, rtol=1e-3, atol=1e-5)


def test_inputs_that_are_zero_or_too_large_to_square_harm_nothing() -> None:
    weight = draw(7, 1, 3, 5)
    zero, large = torch.zeros(1, 20, 5), draw(8, 1, 20, 5) * 1e30
    made = round_for_inputs(weight, ONNX_X86, zero, zero, centred=True).weight
    torch.testing.assert_close(made[0], weight_quant(weight[0], 0, ONNX_X86).rounded(weight[0]), rtol=1e-6, atol=0.0)
    left = round_for_inputs(weight, ONNX_X86, large, large, centred=True)
    assert left.weight is weight and not left.shift.any()


class Tied(nn.Module):
    """A weight that an embedding reads too, one that two layers read, and one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.both = nn.Embedding(20, 16), nn.Linear(16, 16)
        self.own = nn.Linear(16, 16)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.both(self.both(self.table(ids)).relu())
        return nn.functional.linear(self.own(x), self.table.weight)


def test_shared_weights_are_rounded_over_all_that_read_them_or_left() -> None:
    model, ids = Tied().eval(), [torch.arange(10) + k for k in range(8)]
    captured = capture(model, example_inputs=(ids[0],))
    layers = list(weighted_layers(captured))
    assert [layer.weight for layer in layers] == ["both.weight", "both.weight", "own.weight"]
    assert [layer.bias for layer in layers] == ["", "", "own.bias"]
    ((name, rows),) = rows_of_weights(captured, [captured.feeds(i) for i in ids], layers[:2])
    assert name == "both.weight" and rows.shape == (1, 160, 16)
    run = pipeline.calibrate(captured, ids, progress=False)
    prepared = pipeline.prepare(pipeline.request("x86-cpu", algorithms=("gptq",)), captured, run)
    changed = {name for name in ("both.weight", "own.weight", "table.weight") if not same(captured, prepared, name)}
    assert changed == {"both.weight", "own.weight"}


def same(captured: Any, prepared: Any, name: str) -> bool:
    return torch.equal(value_of(captured, name), value_of(prepared.captured, name))


def test_in_step_shows_both_graphs_and_computes_the_float_one_once_where_they_agree() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
    x = [draw(9, 2, 4), draw(10, 2, 4)]
    captured = capture(model, example_inputs=(x[0],))
    first, second = weighted_layers(captured)
    replaced: dict[str, Tensor] = {}
    shown: list[Any] = []

    def choose_first(plain: Any, other: Any) -> None:
        assert plain is other
        replaced[first.weight] = 2 * value_of(captured, first.weight)

    def choose_second(plain: Any, other: Any) -> None:
        shown.extend((plain, other))

    steps = {first.op: (first.source, choose_first), second.op: (second.source, choose_second)}
    run_in_step(captured, [captured.feeds(each) for each in x], replaced, steps)
    for each, plain, other in zip(x, *shown, strict=True):
        torch.testing.assert_close(plain, model[:2](each))
        torch.testing.assert_close(other, (2 * each @ model[0].weight.T + model[0].bias).relu())


def test_few_samples_of_a_network_with_large_tensors() -> None:
    captured = capture(nn.Sequential(nn.Linear(4, 4)).eval(), example_inputs=(torch.ones(2, 4),))
    feeds = [captured.feeds(torch.ones(2, 4))] * 40
    assert len(affordable(captured, feeds)) == 40


def test_layers_that_stay_float_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval()
    captured = capture(model, example_inputs=(draw(11, 4, 8),))
    run = pipeline.calibrate(captured, [draw(k, 4, 8) for k in range(12, 20)], progress=False)
    asked = pipeline.request("x86-cpu", exclude=("2",), algorithms=("gptq",))
    prepared = pipeline.prepare(asked, captured, run)
    assert same(captured, prepared, "2.weight") and not same(captured, prepared, "0.weight")
    again = pipeline.prepare(asked, captured, run)
    assert again.captured.fingerprint == prepared.captured.fingerprint


def test_rounding_is_noise_seen_from_what_was_not_rounded() -> None:
    """A rounded weight lies on the target's grid: seen from itself, it would have no error and no layer any gain."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)).eval()
    captured = capture(model, example_inputs=(draw(0, 16, 32),))
    run = pipeline.calibrate(captured, [draw(k, 16, 32) for k in range(1, 17)], progress=False)
    rounded = pipeline.prepare(pipeline.request("x86-cpu", "int4-weight-only", algorithms=("gptq",)), captured, run)
    assert rounded.unrounded is not None and rounded.exact is rounded.unrounded
    assert same(captured, replace(rounded, captured=rounded.exact), "0.weight")
    found = sensitivity(rounded, [captured.feeds(draw(k, 16, 32)) for k in range(20, 28)], rest=WIDE)
    assert found.sqnr_db < 30
    one, all_three = found.keep(1), found.keep(3)
    assert len(one.kept) == 1 and one.gain_db > 0.5  # where weights had no error, nothing was worth keeping
    assert len(all_three.kept) == 3 and all_three.gain_db > 10 and all_three.rest == WIDE
    # what changes weights in another way afterwards makes another model: its own weights are the exact ones
    other = Algorithm("other", lambda made, _: replace(made, captured=with_weights(made.captured, {})), cost="none")
    assert apply_one(rounded, other).unrounded is None
    assert apply_one(rounded, replace(other, run=lambda made, _: made)).unrounded is rounded.unrounded


def apply_one(prepared: Prepared, found: Algorithm) -> Prepared:
    register(found)
    try:
        return apply(prepared, [found.name])
    finally:
        _registered.pop(found.name)
