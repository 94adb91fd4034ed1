"""Sensitivity: the roundings that are tapped are those that a scheme places, and what is predicted is what comes."""

from __future__ import annotations

import gc
import importlib
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from schemes import SCHEMES
from torch import Tensor, nn

from deploykit.contract.decibels import sqnr_db
from deploykit.contract.devices import Device
from deploykit.contract.errors import CalibrationError, UsageError
from deploykit.contract.precision import Precision
from deploykit.contract.request import Request
from deploykit.contract.scheme import IN_FLOAT, Scheme
from deploykit.contract.session import OpTime
from deploykit.judge.parts import Part
from deploykit_calibration.prepare import prepare
from deploykit_calibration.prepared import Prepared
from deploykit_calibration.sensitivity import costs_of, measured, meet, sensitivity
from deploykit_calibration.sensitivity.candidates import Candidate, front
from deploykit_calibration.sensitivity.ends import End, ends_of
from deploykit_calibration.sensitivity.exchange import exchanged
from deploykit_calibration.sensitivity.noise import saturated
from deploykit_calibration.sensitivity.planning import Planning
from deploykit_calibration.sensitivity.scores import DIRECTIONS, PASSES, score
from deploykit_calibration.sensitivity.search import pruned, sequence
from deploykit_calibration.sensitivity.taps import Taps
from deploykit_targets._schemes.gpu import TENSORRT_FP8
from deploykit_targets._schemes.x86 import ONNX_X86
from deploykit_targets.coreml.scheme import weight_only as coreml_weights
from deploykit_targets.litert.scheme import BY_VENDOR
from deploykit_targets.onnxruntime.scheme import DYNAMIC, weight_only

EVERY = {**SCHEMES, TENSORRT_FP8.name: TENSORRT_FP8}
NETS = ("residual_cnn", "mobilenet_like", "concat_cnn", "transformer_encoder")


def prepared_of(case: Any, scheme: Scheme = ONNX_X86, **changes: Any) -> Prepared:
    precision = Precision.FP8 if scheme is TENSORRT_FP8 else Precision.INT8
    device = Device("any", "any", "any", "x86-64", (precision,))
    request = Request("any", "any", device, precision, **changes)
    return prepare(request, case.captured, scheme, table=case.table, samples=case.feeds)


def measured_db(prepared: Prepared, case: Any, ends: tuple[End, ...]) -> float:
    """SQNR of the simulated graph, of the worst output or part of one."""
    powers = {end.name: [0.0, 0.0] for end in ends}
    names = [spec.name for spec in prepared.captured.outputs]
    for feeds in case.feeds:
        want = prepared.captured.run(feeds)
        got = prepared.simulation.run({name: tensor.numpy() for name, tensor in feeds.items()})  # type: ignore[union-attr]
        for end in ends:
            own, reference = powers[end.name], want[names[end.index]].double().numpy()
            inside = np.ones(reference.shape, bool) if end.part is None else slices(end.part, reference.shape)
            own[0] += float(np.square(reference[inside]).sum())
            own[1] += float(np.square(reference - got[names[end.index]])[inside].sum())
    return min(sqnr_db(*each) for each in powers.values())


def slices(part: Part, shape: tuple[int, ...]) -> np.ndarray:
    """Which elements belong to a part."""
    positions = np.indices(shape)[part.axis] % (part.period or shape[part.axis])
    return (positions >= part.start) & (positions < part.stop)


def test_what_was_scored_is_freed(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autograd's graph holds the hooks: one that held its own tensor would keep every sample in memory."""
    taps, alive = importlib.import_module("deploykit_calibration.sensitivity.taps"), []
    tapped = taps._tapped

    def noted(*arguments: Any) -> Any:
        made = tapped(*arguments)
        alive.append(weakref.ref(made[0]))
        return made

    monkeypatch.setattr(taps, "_tapped", noted)
    case = zoo("residual_cnn")
    sensitivity(prepared_of(case), case.feeds)
    gc.collect()
    assert len(alive) > 10 and not [each for each in alive if each() is not None]


def test_few_samples_have_several_directions_each_and_many_have_one(zoo: Any) -> None:
    case = zoo("residual_cnn")
    prepared = prepared_of(case)
    ends = ends_of(prepared, case.feeds)[:1]  # of the whole output, and of no part
    few, many = score(prepared, case.feeds[:2], ends), score(prepared, (case.feeds * 16)[:40], ends)
    assert few.passes == 2 * DIRECTIONS and many.passes == PASSES


@pytest.mark.parametrize(("scored", "left"), [(4.0, 0.8), (2.0, 2 / 3), (1.0, 0.5), (0.5, 0.5), (0.0, 0.5)])
def test_noise_that_the_network_takes_out_again_is_not_gained_twice(scored: float, left: float) -> None:
    """Half of the scores is left: n = l / (1 + a l) with a from the start, by hand; less noise than measured: a = 0."""
    assert saturated(0.5, scored, End("y", 0, None, 20.0, noise=1.0)) == pytest.approx(left)
    assert saturated(0.0, scored, End("y", 0, None, 20.0, noise=1.0)) == 0.0
    assert saturated(1.0, scored, End("y", 0, None, 20.0, noise=1.0)) == pytest.approx(1.0)


@pytest.mark.parametrize("scheme", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("name", NETS)
def test_what_is_tapped_is_what_the_planner_rounds(zoo: Any, name: str, scheme: Scheme) -> None:
    prepared = prepared_of(zoo(name), scheme)
    planned = Planning(prepared).plan()
    taps = Taps(prepared.captured.graph_module, prepared.simulation.graph_module)  # type: ignore[union-attr]
    assert planned.pairs
    assert taps.reads == {(tensor, reader) for tensor, readers in planned.reads.items() for reader in readers}
    assert taps.stored == set(planned.stored)


ALONE = {
    scheme.name: scheme
    for scheme in (
        *(weight_only(4, 16), weight_only(8, 16), DYNAMIC, *BY_VENDOR.values()),
        coreml_weights(Precision.INT4_WEIGHT_ONLY, block_size=16, threshold=64),
        coreml_weights(Precision.INT4_PALETTE, block_size=16, threshold=64),
    )
}


@pytest.mark.parametrize("scheme", ALONE.values(), ids=ALONE)
@pytest.mark.parametrize("name", ["lstm_classifier", "transformer_encoder"])
def test_weights_alone_palettes_and_dynamic_inputs_are_tapped(zoo: Any, name: str, scheme: Scheme) -> None:
    prepared = prepared_of(zoo(name), scheme)
    planned = Planning(prepared).plan()
    taps = Taps(prepared.captured.graph_module, prepared.simulation.graph_module)  # type: ignore[union-attr]
    assert taps.reads == {(tensor, reader) for tensor, readers in planned.reads.items() for reader in readers}
    assert taps.stored == set(planned.stored)
    found = sensitivity(prepared)
    assert found.layers[0].share > 0.0
    assert found.front()[-1].sqnr_db > found.sqnr_db + 3.0


class Residual(nn.Module):
    """Two residual blocks and a head, all of the picture's size: thousands of values are judged, and luck is small."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for first, second in (self.blocks[:2], self.blocks[2:]):
            x = torch.relu(x + second(torch.relu(first(x))))
        return self.head(nn.functional.max_pool2d(x, 2))


@pytest.mark.parametrize("scheme", EVERY.values(), ids=EVERY)
def test_the_gain_is_within_two_decibels_of_the_real_one(case_of: Any, scheme: Scheme) -> None:
    case = case_of(Residual(), (torch.zeros(1, 3, 24, 24),))
    prepared = prepared_of(case, scheme)
    found = sensitivity(prepared)
    assert found.sqnr_db == pytest.approx(measured_db(prepared, case, found.ends), abs=0.01)
    for count in (1, 2, 4):
        candidate = found.keep(count)
        kept = candidate.applied(prepared)
        real = measured_db(kept, case, found.ends) - found.sqnr_db
        assert candidate.gain_db == pytest.approx(real, abs=2.0), "the figure that the issue asks for"
        assert {layer.name for layer in kept.layers if layer.precision == "float"} >= set(candidate.kept)


class Planted(nn.Module):
    """Three like convolutions; in the middle, weights of a channel that is always zero spoil the scale of others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.noisy, self.last = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        with torch.no_grad():
            self.noisy.weight[:, 0] = 12.0
            self.first.weight[0], self.first.bias[0] = 0.0, -1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.noisy(torch.relu(self.first(x)))))


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)  # not float8, whose errors know no scale
def test_a_planted_noisy_layer_is_found_first(case_of: Any, scheme: Scheme) -> None:
    case = case_of(Planted(), (torch.zeros(1, 8, 12, 12),))
    found = sensitivity(prepared_of(case, replace(scheme, float_outputs=False)))
    assert found.layers[0].module_path == "noisy"
    assert found.keep(1).kept == (found.layers[0].name,)
    assert found.layers[0].gain_db > 3.0
    assert "noisy" in str(found).splitlines()[2]


def candidate(cost: float, sqnr_db: float, share: float = 1.0) -> Candidate:
    return Candidate(("layer",) * int(cost), sqnr_db, sqnr_db - 20.0, cost, share, "float32")


def test_a_front_has_what_nothing_beats() -> None:
    good = [candidate(1, 20.0), candidate(2, 25.0, 0.9), candidate(3, 30.0, 0.8)]
    beaten = [candidate(2.5, 24.0, 0.85), candidate(3, 29.0, 0.7), candidate(1, 20.0)]
    assert front([*beaten, *good]) == tuple(good)


@pytest.mark.parametrize("first", range(17), ids="goal met from {}".format)
@pytest.mark.parametrize("offset", [-2.0, 0.0, 2.0])
def test_the_cheapest_candidate_is_met_in_four_evaluations(first: int, offset: float) -> None:
    """Sixteen candidates, predictions that are off by 2 dB: each step is 1 dB."""
    candidates = [candidate(at, 20.0 + at) for at in range(16)]
    asked: list[float] = []

    def evaluate(each: Candidate) -> float:
        asked.append(each.cost)
        return each.sqnr_db

    met = meet(candidates, evaluate, 20.0 + first, predicted=lambda each: each.sqnr_db + offset)
    assert len(asked) == len(set(asked)) <= 4
    assert met.meets == (first < 16)
    assert met.best.cost == min(first, 15)


@pytest.mark.parametrize("first", range(2, 62), ids="goal met from {}".format)
@pytest.mark.parametrize("slope", [0.8, 1.0, 1.2])
def test_what_is_measured_corrects_what_is_predicted(first: int, slope: float) -> None:
    """Sixty-four candidates, steps of a quarter decibel, gains that are a fifth more or less than predicted."""
    candidates = [candidate(at, 20.0 + at / 4) for at in range(64)]
    met = meet(
        candidates, lambda each: 21.0 + slope * (each.sqnr_db - 20.0), 21.0 + slope * first / 4,
        predicted=lambda each: each.sqnr_db,
    )  # fmt: skip
    assert met.meets and len(met.tried) <= 4
    assert first <= met.best.cost <= first + 1


def test_a_goal_that_nothing_meets_leaves_the_best() -> None:
    candidates = [candidate(at, 20.0) for at in range(5)]
    met = meet(candidates, lambda each: float("nan") if each.cost == 3 else each.cost, 100.0)
    assert not met.meets
    assert met.best.cost == 4.0


def test_layers_by_name_and_by_module(case_of: Any) -> None:
    prepared = prepared_of(case_of(Planted(), (torch.zeros(1, 8, 12, 12),)), SCHEMES["openvino"])
    found = sensitivity(prepared)
    assert found.predict(["noisy"]) == found.predict([found.layers[0].name])
    with pytest.raises(UsageError, match="no quantised layer 'nosy'"):
        found.predict(["nosy"])


def test_everything_in_float_has_no_noise_and_the_dearest_price(case_of: Any) -> None:
    found = sensitivity(prepared_of(case_of(Residual(), (torch.zeros(1, 3, 24, 24),))))
    last, first = found.front()[-1], found.front()[0]
    assert (last.quantized_share, last.sqnr_db) == (0.0, 200.0)
    assert (first.kept, first.gain_db) == ((), 0.0)
    assert last.cost == pytest.approx(4 * first.cost, rel=0.02), "float32 has four times the bytes of int8"
    assert all(each.quantized_share >= 0.5 for each in found.front(least_share=0.5))


def test_costs_are_of_the_device_table_or_as_measured(case_of: Any) -> None:
    prepared = prepared_of(case_of(Planted(), (torch.zeros(1, 8, 12, 12),)), SCHEMES["openvino"])
    device = replace(prepared.device, peak_tops={"int8": 2.0, "fp32": 0.5})
    rated = replace(prepared, request=replace(prepared.request, device=device))
    layer = next(each for each in prepared.layers if each.module_path == "noisy")
    assert costs_of(rated).layers[layer.name].kept == pytest.approx(2 * layer.macs / 0.5e6)
    assert costs_of(rated).layers[layer.name].extra == pytest.approx(3 * layer.macs / 1e6)
    told = [[OpTime(layer.name, "conv", "noisy", microseconds)] for microseconds in (3.0, 5.0)]
    found = sensitivity(prepared, costs=measured(prepared, *told))
    assert found.layers[0].cost == 2.0 and found.costs.unit == "us, measured"


class Returns(nn.Module):
    """A convolution, and what a function makes of it."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.function = nn.Conv2d(3, 4, 3), function

    def forward(self, x: Tensor) -> Any:
        return self.function(torch.relu(self.conv(x)))


def test_a_model_without_floating_outputs_is_refused(case_of: Any) -> None:
    case = case_of(Returns(lambda x: x.amax((2, 3)).argmax(1)), (torch.zeros(1, 3, 8, 8),))
    with pytest.raises(CalibrationError, match="noise at floating outputs"):
        sensitivity(prepared_of(case))


def test_the_worst_output_is_what_counts(case_of: Any) -> None:
    """The second output is nearly all noise: a difference of nearly equal numbers."""
    case = case_of(
        Returns(lambda x: (x, x.mean((2, 3)) - x.mean((2, 3)).round(decimals=1))), (torch.zeros(1, 3, 8, 8),)
    )
    found = sensitivity(prepared_of(case, SCHEMES["openvino"]))
    figures = {end.index: end.sqnr_db for end in found.ends if end.part is None}
    assert found.sqnr_db <= min(figures.values()) and len(figures) == 2


def test_a_precision_that_rounds_nothing_is_refused(zoo: Any) -> None:
    with pytest.raises(UsageError, match="no layer is sensitive"):
        sensitivity(prepared_of(zoo("mlp"), IN_FLOAT))


class Dense(nn.Module):
    """Three linear layers, whose inputs are blocks of 32."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


def test_a_layer_may_hold_eight_bits_beside_four(case_of: Any) -> None:
    case = case_of(Dense(), (torch.zeros(16, 64),))
    prepared = replace(prepared_of(case, weight_only(4, 32)))
    found = sensitivity(prepared, rest="int8-weights")
    assert found.costs.rest == "int8-weights"
    for count in (1, 2, 3):
        candidate = found.keep(count)
        widened = candidate.applied(prepared)
        real = measured_db(widened, case, found.ends) - found.sqnr_db
        assert candidate.gain_db == pytest.approx(real, abs=2.0)
        held = {layer.name for layer in widened.layers if layer.precision == "int8-weights"}
        assert held == set(candidate.kept) and len(held) == count
        assert all("holds 8 bits" in layer.reason for layer in widened.layers if layer.name in held)


def test_where_weights_have_one_width_none_is_wider(case_of: Any) -> None:
    case = case_of(Dense(), (torch.zeros(16, 64),))
    for scheme in (ONNX_X86, weight_only(8, 32), BY_VENDOR[Precision.INT4_WEIGHT_ONLY]):
        prepared = prepared_of(case, scheme)
        with pytest.raises(UsageError, match="one width"):
            sensitivity(prepared, rest="int8-weights")
        with pytest.raises(UsageError, match="no 8-bit form for the weights of linear beside"):
            _ = replace(prepared, wider={"linear": "asked"}).placed
    with pytest.raises(UsageError, match="is not placed"):
        _ = replace(prepared, scheme=IN_FLOAT, wider={"linear": "asked"}).placed
    with pytest.raises(UsageError, match="cannot become 'float16'"):
        sensitivity(prepared, rest="float16")


def test_a_move_that_gains_only_behind_another_is_found() -> None:
    """`b` gains nothing before `a` is kept, and is passed over until the others are used up."""
    noises = {(): 1.0, ("a",): 0.5, ("b",): 1.0, ("a", "b"): 0.1}
    steps = list(sequence([("a",), ("b",)], lambda kept: noises[tuple(sorted(kept))], len, 2))
    assert steps == [("a",), ("a", "b")]


def test_what_gains_nothing_is_not_kept() -> None:
    assert list(sequence([("a",), ("b",)], lambda kept: 1.0, len, 2)) == []


def test_what_later_choices_make_superfluous_is_let_go_dearest_first() -> None:
    powers = {"early": 1.0, "dear": 2.0, "cheap": 2.0, "loud": 8.0}
    cost = {"early": 3.0, "dear": 9.0, "cheap": 1.0, "loud": 1.0}
    noise = lambda kept: sum(power for name, power in powers.items() if name not in kept)  # noqa: E731
    weight = lambda move: sum(cost[name] for name in move)  # noqa: E731
    kept = ("early", "dear", "cheap", "loud")
    assert pruned(kept, noise, weight, 2.0) == ("early", "cheap", "loud"), "the dear one fits, and then no other does"
    assert pruned(kept, noise, weight, 3.5) == ("cheap", "loud")
    assert pruned(kept, noise, weight, 0.5) == kept


def test_a_wanted_gain_is_reached_more_cheaply(case_of: Any) -> None:
    found = sensitivity(prepared_of(case_of(Residual(), (torch.zeros(1, 3, 24, 24),))))
    plain = found.front()
    wanted = plain[len(plain) // 2].gain_db
    second = found.front(near_db=wanted)
    cheapest = lambda front: min(each.cost for each in front if each.gain_db >= wanted)  # noqa: E731
    assert cheapest(second) <= cheapest(plain)
    predicted = [found.predict(each.kept) for each in second]
    figures = [(each.kept, each.cost, each.quantized_share) for each in second]
    assert figures == [(each.kept, each.cost, each.quantized_share) for each in predicted]


def test_neighbours_of_a_wanted_gain_differ_by_powers_alone(case_of: Any) -> None:
    """The luck that each has along random directions is shared: none is preferred for its own."""
    found = sensitivity(prepared_of(case_of(Residual(), (torch.zeros(1, 3, 24, 24),))))
    near = sorted(each.gain_db for each in found.front() if 0.0 < each.gain_db < 100.0)[1]
    about = [each for each in found.front(near_db=near) if near - 0.2 <= each.gain_db <= near + 0.7]
    powers = [-10.0 * np.log10(found._noise.relative(each.kept)) for each in about]
    beyond = [each.gain_db - by_power for each, by_power in zip(about, powers, strict=True)]
    assert about and max(beyond) - min(beyond) < 1e-6
    by_itself = [found.predict(each.kept).gain_db for each in about]
    assert all(abs(one - each.gain_db) <= 2.0 for one, each in zip(by_itself, about, strict=True))


NOISES = st.lists(st.floats(0.01, 1.0), min_size=4, max_size=7)


@given(NOISES, st.lists(st.integers(1, 9), min_size=7, max_size=7), st.data())
@settings(max_examples=60, deadline=None)
def test_an_exchange_never_weighs_more_nor_has_more_noise(noises: list[float], weights: list[int], data: Any) -> None:
    """Against each single exchange, tried by hand: none is left that would save something."""
    names = [f"layer{at}" for at in range(len(noises))]
    left = lambda kept: sum(noise for name, noise in zip(names, noises, strict=True) if name not in kept)  # noqa: E731
    weight = lambda kept: float(sum(weights[names.index(name)] for name in kept))  # noqa: E731
    kept = tuple(data.draw(st.lists(st.sampled_from(names), unique=True, max_size=len(names))))
    most = left(kept) + data.draw(st.floats(0.0, 0.5))
    found = exchanged(kept, names, left, weight, most)
    assert left(found) <= most and weight(found) <= weight(kept) and len(set(found)) == len(found)
    others = [name for name in names if name not in found]
    for out in found:
        rest = tuple(name for name in found if name != out)
        for into in ((), *((name,) for name in others)):
            assert weight((*rest, *into)) >= weight(found) or left((*rest, *into)) > most


def test_a_dear_layer_is_exchanged_for_two_cheap_ones() -> None:
    noise = {"dear": 0.5, "one": 0.3, "other": 0.3, "rest": 0.1}
    weight = {"dear": 9.0, "one": 2.0, "other": 2.0, "rest": 20.0}
    left = lambda kept: sum(value for name, value in noise.items() if name not in kept)  # noqa: E731
    found = exchanged(("dear",), list(noise), left, lambda kept: sum(weight[name] for name in kept), left(("dear",)))
    assert set(found) == {"one", "other"}


def test_candidates_about_a_wanted_gain_are_cheaper_by_exchanges(case_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every predicted SQNR the front costs at most what it costs without, and somewhere less."""
    from deploykit_calibration.sensitivity import ranking

    found = sensitivity(prepared_of(case_of(Residual(), (torch.zeros(1, 3, 24, 24),))))
    gains = sorted(each.gain_db for each in found.front() if 0.0 < each.gain_db < 100.0)
    near = gains[len(gains) // 2]
    with_them = found.front(near_db=near)
    monkeypatch.setattr(ranking, "exchanged", lambda kept, *_: kept)
    for each in found.front(near_db=near):
        assert any(one.cost <= each.cost and one.sqnr_db >= each.sqnr_db - 1e-9 for one in with_them)
