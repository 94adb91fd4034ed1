"""A prepared model: the methods of ranges, and the best of several."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from deploykit.contract.decibels import sqnr_db
from deploykit.contract.devices import Device
from deploykit.contract.errors import CalibrationError, UsageError
from deploykit.contract.precision import Precision
from deploykit.contract.request import Request
from deploykit.contract.scheme import IN_FLOAT, Scheme
from deploykit_calibration.algorithms import apply
from deploykit_calibration.algorithms.best import CANDIDATES
from deploykit_calibration.placement import QuantizedGraph, place
from deploykit_calibration.prepare import prepare
from deploykit_calibration.simulate import fuse, run
from deploykit_targets._schemes.gpu import TENSORRT
from deploykit_targets._schemes.x86 import ONNX_X86


def quantized(case: Any, scheme: Scheme, **changes: Any) -> QuantizedGraph:
    device = Device("any", "any", "any", "x86-64", (Precision.INT8,))
    of_case = {"table": case.table, "samples": case.feeds}
    known = {key: changes.get(key, value) for key, value in of_case.items()}
    asked = {key: value for key, value in changes.items() if key not in known}
    return prepare(Request("any", "any", device, Precision.INT8, **asked), case.captured, scheme, **known).placed


def quality(case: Any, quantized: QuantizedGraph) -> float:
    signal = noise = 0.0
    for feeds in case.feeds:
        for want, got in zip(
            run(case.captured.graph_module, feeds), run(fuse(quantized.graph_module), feeds), strict=True
        ):
            signal += float(want.double().square().sum())
            noise += float((want - got).double().square().sum())
    return sqnr_db(signal, noise)


@pytest.mark.parametrize("scheme", [ONNX_X86, TENSORRT], ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("name", ["residual_cnn", "mobilenet_like"])
def test_best_is_as_accurate_as_the_best_candidate(zoo: Any, name: str, scheme: Any) -> None:
    case = zoo(name)
    each = {method: quality(case, quantized(case, scheme, method=method)) for method in CANDIDATES}
    assert len(set(each.values())) > 1, "else the choice says nothing"
    assert quality(case, quantized(case, scheme, method="best")) == max(each.values())


def test_best_places_what_is_placed_already_no_second_time(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case, tried = zoo("residual_cnn"), list[str]()

    def recorded(*arguments: Any, method: str, **further: Any) -> QuantizedGraph:
        tried.append(method)
        return place(*arguments, method=method, **further)

    monkeypatch.setattr("deploykit_calibration.prepared.place", recorded)
    device = Device("any", "any", "any", "x86-64", (Precision.INT8,))
    asked = Request("any", "any", device, Precision.INT8)
    plain = prepare(asked, case.captured, ONNX_X86, table=case.table, samples=case.feeds)
    held = plain.placed
    best = apply(plain, ["best"])
    assert sorted(tried) == sorted(CANDIDATES) and plain.placed is held
    assert best.method in CANDIDATES and list(held.graph_module.buffers()), "what the caller uses was not freed"


def test_best_takes_the_example_inputs_where_there_are_no_samples(zoo: Any) -> None:
    case = zoo("residual_cnn")
    found = quantized(case, ONNX_X86, method="best", samples=())
    assert any(layer.precision == "int8" for layer in found.layers)


def test_an_input_may_be_called_like_a_builtin(case_of: Any) -> None:
    """FX gives the placeholder of an argument called `input` another name."""

    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return self.layer(self.layer(input))  # type: ignore[no-any-return]

    case = case_of(Doubled(), (torch.randn(2, 16),))
    assert case.captured.inputs[0].name == "input"
    assert any(layer.precision == "int8" for layer in quantized(case, ONNX_X86, method="best").layers)


def test_best_is_the_same_every_time(zoo: Any) -> None:
    case = zoo("mobilenet_like")
    first, second = (quantized(case, ONNX_X86, method="best").graph_module for _ in range(2))
    for a, b in zip(run(first, case.feeds[0]), run(second, case.feeds[0]), strict=True):
        assert torch.equal(a, b)


def test_patterns_and_methods_reach_the_placement(zoo: Any) -> None:
    case = zoo("residual_cnn")
    (first, *_) = [layer.module_path for layer in quantized(case, ONNX_X86).layers if layer.kind == "conv"]
    kept = {layer.module_path: layer for layer in quantized(case, ONNX_X86, exclude=(first,)).layers}
    assert kept[first].precision == "float"
    with pytest.raises(UsageError, match="no calibration method 'guess'"):
        quantized(case, ONNX_X86, method="guess")


def test_without_a_table_there_is_no_int8(zoo: Any) -> None:
    with pytest.raises(CalibrationError, match="int8 needs a calibration table"):
        quantized(zoo("residual_cnn"), ONNX_X86, table=None)


@pytest.mark.parametrize("scheme", [ONNX_X86, IN_FLOAT], ids=lambda scheme: scheme.name or "float")
def test_what_a_search_is_done_with_is_freed_without_a_collection(zoo: Any, scheme: Scheme) -> None:
    case = zoo("residual_cnn")
    device = Device("any", "any", "any", "x86-64", (Precision.INT8,))
    request = Request("any", "any", device, Precision.INT8)
    prepared = prepare(request, case.captured, scheme, table=case.table, samples=case.feeds)
    stored = {name: value.clone() for name, value in prepared.captured.graph_module.state_dict().items()}
    before, held = quality(case, prepared.placed), None
    if prepared.simulation is not None:
        held = weakref.ref(next(iter(prepared.simulation.graph_module.buffers())))
    gc.disable()
    try:
        prepared.release()
        assert held is None or held() is None
    finally:
        gc.enable()
    assert quality(case, prepared.placed) == before, "asked for again, it is made again"
    left = prepared.captured.graph_module.state_dict()
    assert left.keys() == stored.keys(), "the float model keeps its own"
    assert all(torch.equal(left[name], value) for name, value in stored.items())
