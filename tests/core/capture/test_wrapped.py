"""Models as users hold them: wrapped for training or speed, made under inference_mode, fed with dataclasses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from deploykit.capture import capture
from deploykit.contract.errors import CalibrationError, CaptureError, UsageError

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(features)  # type: ignore[no-any-return]


def _distributed() -> nn.Module:
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)  # a process group is needed by its constructor alone
    wrapped.module = Net()
    return wrapped


WRAPPED: dict[str, Callable[[], nn.Module]] = {
    "torch.compile": lambda: torch.compile(Net()),  # type: ignore[dict-item, return-value]
    "DataParallel": lambda: nn.DataParallel(Net()),
    "DistributedDataParallel": _distributed,
    "AveragedModel": lambda: torch.optim.swa_utils.AveragedModel(Net()),
    "two of them": lambda: torch.compile(nn.DataParallel(Net())),  # type: ignore[dict-item, return-value]
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.compile imports what is deprecated
@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_are_taken_off(name: str) -> None:
    captured = capture(WRAPPED[name](), example_inputs=(X,))
    assert [spec.name for spec in captured.inputs] == ["features"]
    assert [origin.module_path for origin in captured.origins.values()] == ["layer"]


@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, X)], ids=["script", "trace"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_says_what_to_pass(make: Any) -> None:
    with pytest.raises(UsageError, match="TorchScript") as caught:
        capture(make(Net()), example_inputs=(X,))
    assert "nn.Module that it was made of" in str(caught.value.hint)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_inside_a_module() -> None:
    captured = capture(nn.Sequential(torch.jit.trace(Net(), X), nn.ReLU()), example_inputs=(X,))
    assert [origin.op for origin in captured.origins.values()] == ["aten.linear.default", "aten.relu.default"]
    with pytest.raises(CaptureError, match="in 0") as caught:
        capture(nn.Sequential(torch.jit.script(nn.Linear(4, 2)), nn.ReLU()), example_inputs=(X,))
    assert "'0' is TorchScript" in str(caught.value.hint)


def test_models_inputs_and_callers_under_inference_mode() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), nn.ReLU()).eval()
        x = torch.randn(1, 3, 5)
        inside = capture(model, example_inputs=(x,))
    outside = capture(model, example_inputs=(x,))
    assert inside.fingerprint == outside.fingerprint
    with torch.no_grad():
        torch.testing.assert_close(outside.graph_module(x)[0], model(x))


@dataclass
class Pair:
    left: Tensor
    right: Tensor
    scale: float = 2.0


@dataclass(frozen=True)
class Result:
    total: Tensor
    parts: Any
    note: Tensor | None = None


class Named(NamedTuple):
    first: Tensor
    second: Tensor


class Structured(nn.Module):
    def forward(self, pair: Pair) -> Result:
        return Result(pair.left + pair.right * pair.scale, {"both": [Named(pair.left, pair.right)]})


def test_dataclasses_go_in_and_come_out() -> None:
    for examples in ((Pair(X, X + 1),), Pair(X, X + 1)):
        captured = capture(Structured(), example_inputs=examples)
        assert [spec.name for spec in captured.inputs] == ["pair_left", "pair_right"]
        assert [spec.name for spec in captured.outputs] == ["total", "parts_both_0_first", "parts_both_0_second"]
    for batch in (Pair(X, X * 3), (Pair(X, X * 3),), {"pair": Pair(X, X * 3)}, Named(X, X * 3)):
        assert torch.equal(captured.run(captured.feeds(batch))["total"], X + X * 6)
    with pytest.raises(CalibrationError, match="has no input 'pair_left'"):
        captured.feeds({"pair": Named(X, X)})


def test_a_named_tuple_of_inputs_and_labels_is_a_batch() -> None:
    captured = capture(Net(), example_inputs=(X,))
    assert torch.equal(captured.feeds(Named(X, torch.zeros(3)))["features"], X)


@pytest.mark.parametrize(
    "parametrised",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.orthogonal,
    ],
)
def test_parametrised_weights_are_folded(parametrised: Callable[[nn.Module], nn.Module]) -> None:
    captured = capture(nn.Sequential(parametrised(nn.Linear(4, 2))).eval(), example_inputs=(X,))
    assert [origin.op for origin in captured.origins.values()] == ["aten.linear.default"]
