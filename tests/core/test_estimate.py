"""The roofline against arithmetic done by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from deploykit.contract.achieved import Achieved, LayerAchieved
from deploykit.contract.devices import Device
from deploykit.contract.errors import DeviceError
from deploykit.contract.precision import Evidence, Precision
from deploykit.judge.profiling import Percentiles, rounded
from deploykit.plugin.estimate import _counted, _rate_notes, estimate_layers

DEVICE = Device(
    name="board",
    toolchain="toy",
    summary="",
    arch="sm_1",
    precisions=(Precision.INT8,),
    peak_tops={"int8": 2.0, "fp16": 1.0, "fp32": 0.5},
    memory_gb_per_s=100.0,
    source="made up for this test",
)
CACHED = replace(DEVICE, last_level_cache_mib=1)
MIB = 2**20


def achieved(*layers: LayerAchieved) -> Achieved:
    return Achieved.count("int8", layers, source="test")


def test_a_layer_takes_the_longer_of_arithmetic_and_memory() -> None:
    # 1e6 MACs are 2e6 operations: 1 us at 2e12 per second. 1000 weights of 1 byte and 49000 bytes: 0.5 us at 1e11.
    heavy = LayerAchieved("heavy", "", "conv", "int8", macs=1_000_000, weights=1000)
    (found,) = estimate_layers(achieved(heavy), DEVICE, {"heavy": (7, 7, 49_000)})
    assert found.compute_us == pytest.approx(1.0)
    assert found.memory_us == pytest.approx(0.5)
    assert found.microseconds == pytest.approx(1.0)


def test_wider_types_move_more_bytes_and_compute_slower() -> None:
    layer = LayerAchieved("a", "", "conv", "float32", macs=1_000_000, weights=50_000)
    (found,) = estimate_layers(achieved(layer), DEVICE, {"a": (0, 0, 0)})
    assert found.compute_us == pytest.approx(4.0)
    assert found.memory_us == pytest.approx(2.0)


def test_what_a_cache_holds_is_no_memory_traffic() -> None:
    """A bound counts what cannot stay: of inputs, and of outputs, what is beyond 1 MiB."""
    add = achieved(LayerAchieved("a", "", "add", "float16"))
    (held,) = estimate_layers(add, CACHED, {"a": (MIB // 2, MIB // 2, 0)})
    assert (held.compute_us, held.rate, held.memory_us) == (0.0, "", 0.0)
    (spilt,) = estimate_layers(add, CACHED, {"a": (MIB // 2 + 1000, MIB // 2 + 500, 0)})
    assert spilt.memory_us == pytest.approx((2000 + 1000) / 100e3)
    (unknown,) = estimate_layers(add, DEVICE, {"a": (9 * MIB, 9 * MIB, 0)})
    assert unknown.memory_us == 0.0, "nothing is counted that a cache of unknown size could hold"


def test_tensors_between_layers_count_with_the_narrowest_type() -> None:
    """A float addition in an int8 network may read int8: four bytes each would not be a bound."""
    layers = achieved(LayerAchieved("c", "", "conv", "int8"), LayerAchieved("a", "", "add", "float32"))
    _, found = estimate_layers(layers, CACHED, {"a": (MIB + 1000, 0, 0)})
    assert found.memory_us == pytest.approx(1000 / 100e3)


def test_held_weights_are_read_narrow_and_multiplied_as_float16() -> None:
    """1e6 MACs are 2e6 operations: 2 us at 1e12. 50000 weights of half a byte: 0.25 us; activations are two bytes."""
    layer = LayerAchieved("a", "", "linear", "int4-weights", macs=1_000_000, weights=50_000)
    (found,) = estimate_layers(achieved(layer), CACHED, {"a": (0, 0, 0)})
    assert (found.compute_us, found.rate) == (pytest.approx(2.0), "fp16")
    assert found.memory_us == pytest.approx(0.25)
    (spilt,) = estimate_layers(achieved(layer), CACHED, {"a": (MIB // 2 + 1000, 0, 0)})
    assert spilt.memory_us == pytest.approx((25_000 + 2000) / 100e3)
    assert _rate_notes([found]) == ("a lower bound of a run that begins with cold caches",)


def test_an_embedding_is_looked_up_and_not_read() -> None:
    table = LayerAchieved("e", "", "embedding", "float32", weights=10**9)
    (found,) = estimate_layers(achieved(table), DEVICE, {"e": (0, 0, 64)})
    assert found.memory_us == pytest.approx(64 / 100e3)


def test_artifacts_that_do_not_record_the_network_inputs_count_weights_alone() -> None:
    layer = LayerAchieved("a", "", "conv", "int8", weights=1000)
    (found,) = estimate_layers(achieved(layer), DEVICE, {"a": (40_000, 9_000)})
    assert found.memory_us == pytest.approx(1000 / 100e3)
    assert "weights, once each; not the tensors between layers" in _counted(DEVICE, {"a": (40_000, 9_000)})
    said = _counted(CACHED, {"a": (1, 2, 3)})
    assert "weights, network inputs and outputs, once each" in said
    assert "beyond the 1 MiB of cache" in said and "an addition costs the read of its other operand" in said


def test_float32_uses_the_matrix_units_where_they_take_it() -> None:
    layer = LayerAchieved("a", "", "conv", "float32", macs=1_000_000)
    with_tf32 = replace(DEVICE, peak_tops={**DEVICE.peak_tops, "tf32": 1.0})
    found = estimate_layers(achieved(layer), with_tf32, {})
    assert (found[0].rate, found[0].compute_us) == ("tf32", pytest.approx(2.0))
    notes = _rate_notes(found)
    assert "lower bound of a run that begins with cold caches" in notes[0]
    assert any(note.startswith("float32 layers use the tf32 rate") for note in notes)


def test_a_rate_that_is_not_published_is_replaced_by_the_next_wider_one_which_is_no_bound() -> None:
    layer = LayerAchieved("a", "", "conv", "fp8", macs=1_000_000)
    found = estimate_layers(achieved(layer), DEVICE, {})
    assert found[0].rate == "fp16"
    assert found[0].compute_us == pytest.approx(2.0)
    notes = _rate_notes(found)
    assert notes[0].startswith("no lower bound: fp8")
    assert "fp8 layers use the fp16 rate: theirs is not published" in notes


def test_without_a_table_there_is_no_estimate() -> None:
    unknown = Device("x", "toy", "", "sm_1", (Precision.INT8,))
    with pytest.raises(DeviceError, match="no published rates of x"):
        estimate_layers(achieved(), unknown, {})


def test_what_is_computed_has_the_digits_that_it_can_mean(toy: Any) -> None:
    """The ratio of 2.1 to 0.71 ms is 3.0 where both are estimates; a measurement keeps its digits."""
    assert [rounded(value) for value in (0.0526315, 13.1034, 1999.0, 0.0)] == [0.053, 13.0, 2000.0, 0.0]
    latency = Percentiles(0.71, 0.71, 0.71, 0.71, 0.71)
    estimated = toy.make_profile(evidence=Evidence.ESTIMATE, latency_ms=latency, baseline_latency_ms=_constant(2.1))
    assert estimated.worth_it == 3.0
    assert toy.make_profile(latency_ms=latency, baseline_latency_ms=_constant(2.1)).worth_it == pytest.approx(
        2.1 / 0.71
    )


def _constant(milliseconds: float) -> Percentiles:
    return Percentiles(*[milliseconds] * 5)
