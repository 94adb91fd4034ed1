"""What LiteRT's converter lowers wrongly is given to it in other forms, which compute the same."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="exporting needs PyTorch")

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import deploykit
from deploykit.capture import capture
from deploykit.contract.errors import ConversionError
from deploykit_targets.litert.failures import not_taken, translated
from deploykit_targets.litert.flatbuffer import Operator
from deploykit_targets.litert.flatbuffer import Tensor as FileTensor
from deploykit_targets.litert.lower import lowered

Function = Callable[..., Any]
ROWS = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(1, 4, 7, 6, generator=torch.Generator().manual_seed(1))


class _Of(nn.Module):
    def __init__(self, function: Function, *modules: nn.Module) -> None:
        super().__init__()
        self.function, self.inner = function, nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.inner)


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


CASES: dict[str, tuple[Function, Tensor, tuple[nn.Module, ...]]] = {
    "sort": (torch.sort, ROWS, ()),
    "sort down a column": (lambda x: torch.sort(x, dim=0, descending=True), ROWS, ()),
    "vector": (lambda x: torch.sort(x.flatten()), ROWS, ()),
    "argsort": (lambda x: torch.argsort(x, descending=True), ROWS, ()),
    "sorted values": (lambda x: torch.msort(x) + torch.sort(x)[0], ROWS, ()),
    "values of the largest": (lambda x: torch.topk(x, 3, largest=False)[0], ROWS, ()),
    "floor": (lambda x: torch.floor_divide(x, 0.3), ROWS, ()),
    "trunc": (lambda x: torch.div(x, x.abs() + 0.1, rounding_mode="trunc"), ROWS, ()),
    "exclusive or": (lambda x: torch.logical_xor(x > 0, x > 1), ROWS, ()),
    "nearest": (lambda x: F.interpolate(x, size=(13, 11)), IMAGE, ()),
    "nearest by a factor": (lambda x: F.interpolate(x, scale_factor=1.7), IMAGE, ()),
    "nearest of one axis": (lambda x: F.interpolate(x, size=(10, 12)), IMAGE, ()),
    "output padding": (
        lambda x, conv: conv(x).relu(),
        IMAGE,
        (_seeded(lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2)),),
    ),
    "more padding out than in": (
        lambda x, conv: conv(x[0]),
        IMAGE,
        (_seeded(lambda: nn.ConvTranspose1d(7, 3, 2, 3, 0, output_padding=2)),),
    ),
}
_CHANGED = ("sort", "topk", "floor_divide", "div.Tensor_mode", "logical_xor", "nearest")


@pytest.mark.parametrize("name", CASES)
def test_the_forms_compute_the_same(name: str) -> None:
    function, x, modules = CASES[name]
    captured = capture(_Of(function, *modules).eval(), example_inputs=(x,))
    graph_module = lowered(captured, captured.graph_module)
    assert graph_module is not captured.graph_module
    calls = {str(node.target) for node in graph_module.graph.nodes if node.op == "call_function"}
    targets = calls - {"aten.topk.default"}
    assert not [target for target in targets if any(each in target for each in _CHANGED)]
    with torch.no_grad():
        for want, got in zip(captured.graph_module(x), graph_module(x), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_other_graphs_are_left_alone() -> None:
    captured = capture(_Of(lambda x: F.interpolate(x, scale_factor=2).relu()).eval(), example_inputs=(IMAGE,))
    graph_module = lowered(captured, captured.graph_module)
    assert torch.equal(graph_module(IMAGE)[0], captured.graph_module(IMAGE)[0])


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (lambda x: torch.linalg.inv(x[:, :4]), "inverse"),
        (lambda x: torch.linalg.cholesky(x[:, :4] @ x[:, :4].T), "factorisation"),
        (lambda x: F.max_pool2d(x[None, None], 2, return_indices=True), "indices"),
    ],
    ids=["inverse", "cholesky", "indices"],
)
def test_refused_with_the_line(function: Function, word: str) -> None:
    captured = capture(_Of(function).eval(), example_inputs=(ROWS,))
    with pytest.raises(ConversionError, match=rf"{word}.*test_lower\.py") as caught:
        lowered(captured, captured.graph_module)
    assert caught.value.hint


class _Origin:
    op, source = "aten.sin.default", "model.py:9 in forward: return x.double().sin()"

    def __str__(self) -> str:
        return f"{self.op} ({self.source})"


def test_a_line_in_the_converters_log_finds_the_layer() -> None:
    """The passes say `file:line:column: error`; of several operators in the line it is the one that they name."""
    other = _Origin()
    other.op = "aten.cos.default"
    log = "/somewhere/model.py:9:0: error: failed to legalize operation 'tfl.sin' that was explicitly marked illegal"
    error = translated("Failed to run converter passes", log, {"cos": other, "sin": _Origin()})
    assert "a part of aten.sin.default (model.py:9" in str(error) and "keep it out" in str(error)


def test_what_the_runtime_does_not_take_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    out = FileTensor("sort_1;", "FLOAT32", (4,), constant=False)
    operators = [
        Operator("ADD", (), (FileTensor("add;", "FLOAT32", (4,), constant=False),)),
        Operator("SORT", (), (out,)),
    ]
    monkeypatch.setattr("deploykit_targets.litert.flatbuffer.operators", lambda model: operators)
    for message in ("Didn't find op for builtin opcode 'SORT' version '1'", "Node number 1 (SORT) failed to prepare"):
        error = not_taken(message, None, {"sort_1": _Origin()})
        assert "aten.sin.default (model.py:9" in str(error) and error.hint


@pytest.mark.skipif(find_spec("litert_torch") is None, reason="litert-torch is not installed")
def test_the_file_computes_the_same(tmp_path: Path) -> None:
    """Most forms in one model, and what is written with complex numbers; LiteRT's order of equal values is stable."""

    def everything(x: Tensor, conv: nn.Module) -> tuple[Tensor, ...]:
        wide = F.interpolate(conv(x), size=(9, 17))
        turned = torch.view_as_real(torch.view_as_complex(wide[0, 0, :, :2].contiguous()) * 1j)
        order, ties = torch.sort(wide[0, 1]), torch.sort(x.flatten().round(), stable=True)
        return turned, order[0], ties[1], torch.topk(wide[0, 2], 3)[0], torch.argsort(x.flatten())

    conv = _seeded(lambda: nn.ConvTranspose2d(4, 3, 3, 2, 1, output_padding=1))
    artifact = deploykit.export(
        _Of(everything, conv).eval(),
        "android",
        "fp32",
        example_inputs=(IMAGE,),
        output=tmp_path / "a",
        profile=False,
        progress=False,
    )
    assert artifact.status == "verified"


@pytest.mark.skipif(find_spec("litert_torch") is None, reason="litert-torch is not installed")
@pytest.mark.parametrize(
    "of_channels",
    [
        lambda y: y[:, 0] + y[:, 1],
        lambda y: F.normalize(y, dim=1),
        lambda y: y * y[:, :1].relu().expand_as(y),
    ],
    ids=["select", "normalize", "expand"],
)
def test_single_channels_of_a_quantized_image(of_channels: Function, tmp_path: Path) -> None:
    """The converter's pass to channels last took their indices for those of rows."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Any:
            return of_channels(self.c(x))

    draws = [torch.randn(1, 16, 6, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(17)]
    artifact = deploykit.export(
        _seeded(Heads), "android", "int8", example_inputs=(draws[0],), calibration=draws[1:], output=tmp_path / "a",
        profile=False, progress=False,
    )  # fmt: skip
    assert artifact.parity.sqnr_db is not None and artifact.parity.sqnr_db > 25.0
