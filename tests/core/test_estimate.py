"""The roofline against arithmetic done by hand."""

from __future__ import annotations

import pytest

from deploykit.achieved import Achieved, LayerAchieved
from deploykit.devices import Device
from deploykit.errors import DeviceError
from deploykit.estimate import estimate_layers
from deploykit.precision import Precision

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


def achieved(*layers: LayerAchieved) -> Achieved:
    return Achieved.count("int8", layers, source="test")


def test_a_layer_takes_the_longer_of_arithmetic_and_memory() -> None:
    # 1e6 MACs are 2e6 operations: 1 us at 2e12 per second. 1000 weights and 49000 elements of 1 byte: 0.5 us at 1e11.
    heavy = LayerAchieved("heavy", "", "conv", "int8", macs=1_000_000, weights=1000)
    (found,) = estimate_layers(achieved(heavy), DEVICE, {"heavy": (40_000, 9_000)})
    assert found.compute_us == pytest.approx(1.0)
    assert found.memory_us == pytest.approx(0.5)
    assert found.microseconds == pytest.approx(1.0)


def test_wider_types_move_more_bytes_and_compute_slower() -> None:
    layer = LayerAchieved("a", "", "conv", "float32", macs=1_000_000, weights=1000)
    (found,) = estimate_layers(achieved(layer), DEVICE, {"a": (40_000, 9_000)})
    assert found.compute_us == pytest.approx(4.0)
    assert found.memory_us == pytest.approx(2.0)


def test_an_operator_without_arithmetic_costs_its_traffic() -> None:
    (found,) = estimate_layers(achieved(LayerAchieved("a", "", "add", "float16")), DEVICE, {"a": (20, 30)})
    assert (found.compute_us, found.rate) == (0.0, "")
    assert found.memory_us == pytest.approx(50 * 2 / 100e3)


def test_a_rate_that_is_not_published_is_replaced_by_the_next_wider_one() -> None:
    layer = LayerAchieved("a", "", "conv", "float8", macs=1_000_000)
    (found,) = estimate_layers(achieved(layer), DEVICE, {})
    assert found.rate == "fp16"
    assert found.compute_us == pytest.approx(2.0)


def test_without_a_table_there_is_no_estimate() -> None:
    unknown = Device("x", "toy", "", "sm_1", (Precision.INT8,))
    with pytest.raises(DeviceError, match="no published rates of x"):
        estimate_layers(achieved(), unknown, {})
