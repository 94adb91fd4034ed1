"""The default placement gate on ONNX Runtime: what is mostly float is refused, with reasons and the way on."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deploykit


class Gate(nn.Module):
    """Convolutions, gates and one small linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.SiLU(), nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Hardswish())
        self.s = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.o = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Any:
        y = self.c(x)
        return self.o((y * self.s(y)).mean((2, 3)))


class Cell(nn.Module):
    """A recurrent cell and a layer behind it."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell, self.o = cell, nn.Linear(16, 4)

    def forward(self, x: Tensor, state: Any) -> Any:
        found = self.cell(x, state)
        return self.o(found[0] if isinstance(found, tuple) else found)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def export(model: nn.Module, inputs: Any, folder: Path, precision: str, **changes: Any) -> deploykit.Artifact:
    arguments = {"example_inputs": inputs, "profile": False, "progress": False, "output": folder, **changes}
    return deploykit.export(model.eval(), "x86-cpu", precision, **arguments)


@pytest.mark.parametrize("precision", ["int8-dynamic", "int4-weight-only", "fp16"])
def test_mostly_float_is_refused_with_what_would_pass(precision: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = Gate(), (draw(0, 1, 3, 16, 16),)
    try:
        export(model, inputs, tmp_path / "a", precision)
    except deploykit.PlacementError as error:
        refused = error
    else:
        assert precision == "fp16", "only a runtime with float16 kernels may pass"
        return
    assert refused.exit_code == 8 and refused.candidate is not None and refused.candidate.status == "failed"
    achieved = refused.candidate.achieved
    assert all(layer.reason for layer in achieved.layers if not achieved.is_as_asked(layer.precision))
    assert achieved.not_as_requested[0].reason in refused.message
    accepted = re.search(r"min_placement=([\d.]+)", refused.hint or "")
    assert accepted is not None
    least = float(accepted[1])
    assert export(model, inputs, tmp_path / "b", precision, min_placement=least).status == "verified"


def test_layers_excluded_by_request_do_not_count_against_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = Gate(), (draw(0, 1, 3, 16, 16),)
    batches = [draw(seed, 1, 3, 16, 16) for seed in range(4)]
    artifact = export(model, inputs, tmp_path / "a", "int8", calibration=batches, exclude=["c.*"])
    assert artifact.achieved.as_asked_fraction < 0.5 and artifact.achieved.placed_fraction == 1.0
    kept = {layer.module_path for layer in artifact.achieved.layers if layer.by_request}
    assert kept == {"c.0", "c.2"}


@pytest.mark.parametrize(
    ("cell", "state", "gates"),
    [
        (nn.LSTMCell, (draw(1, 2, 16), draw(2, 2, 16)), 4),
        (nn.GRUCell, draw(1, 2, 16), 3),
        (nn.RNNCell, draw(1, 2, 16), 1),
        (partial(nn.RNNCell, nonlinearity="relu"), draw(1, 2, 16), 1),
    ],
    ids=["lstm", "gru", "rnn", "rnn_relu"],
)
def test_cells_are_counted_and_run_in_int8(
    cell: Callable[..., nn.Module], state: Any, gates: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, inputs = Cell(cell(16, 16)), (draw(0, 2, 16), state)
    batches = [(draw(seed, 2, 16), state) for seed in range(3, 19)]
    achieved = export(model, inputs, tmp_path / "a", "int8", calibration=batches).achieved
    assert sum(achieved.macs.values()) == achieved.macs["int8"] == 2 * gates * 16 * 32 + 2 * 16 * 4
    assert achieved.weights["int8"] == gates * 16 * 32 + 16 * 4


@pytest.mark.parametrize(
    ("kind", "precision", "status"),
    [(nn.LSTM, "int8", "verified"), (nn.LSTM, "int8-dynamic", "verified"), (nn.GRU, "int8-dynamic", "failed")],
)
def test_a_recurrent_layer_is_int8_where_a_kernel_rounds_its_steps(
    kind: type[nn.RNNBase], precision: str, status: str, tmp_path: Path
) -> None:
    """ONNX Runtime has a dynamic LSTM, which static precisions take too, and no other."""
    torch.manual_seed(0)
    batches = [draw(seed, 1, 4, 32) for seed in range(2)]
    data = {"calibration": batches} if precision == "int8" else {}
    model = kind(32, 32, batch_first=True)
    artifact = export(model, (draw(0, 1, 4, 32),), tmp_path / "a", precision, strict=False, **data)
    assert artifact.status == status
    (layer,) = [layer for layer in artifact.achieved.layers if layer.macs]
    gates = 4 if kind is nn.LSTM else 3
    assert layer.macs == 4 * gates * 32 * 64 and layer.weights == gates * 32 * 64
    assert layer.precision == ("int8" if status == "verified" else "float32")


def test_a_static_lstm_between_int8_layers_computes_what_is_simulated(tmp_path: Path) -> None:
    """Two layers, both directions, and a layer that is kept: its rounding when it runs is in the simulation."""

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed = nn.Linear(8, 16)
            self.lstm = nn.LSTM(16, 24, num_layers=2, bidirectional=True, batch_first=True)
            self.kept = nn.LSTM(48, 16, batch_first=True)
            self.head = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.head(self.kept(self.lstm(self.embed(x))[0])[0])
            return found

    batches = [draw(seed, 2, 6, 8) for seed in range(8)]
    artifact = export(
        Tagger(), (draw(0, 2, 6, 8),), tmp_path / "a", "int8", calibration=batches, exclude=["kept"], strict=False
    )
    runs = {layer.module_path: layer.precision for layer in artifact.achieved.layers if layer.macs}
    assert runs == {"embed": "int8", "lstm": "int8", "kept": "float32", "head": "int8"}
    assert artifact.parity is not None and artifact.parity.quantization is not None
    assert artifact.parity.sqnr_db > 30.0
    assert artifact.parity.quantization.worst.sqnr_db == pytest.approx(artifact.parity.sqnr_db, abs=1.5)


def test_what_is_float_between_int8_layers_is_listed_and_counted(tmp_path: Path) -> None:
    """SiLU and Hardswish have no int8 kernel: 8 channels of 8 x 8, read and written."""
    torch.manual_seed(0)
    inputs, batches = (draw(0, 1, 3, 16, 16),), [draw(seed, 1, 3, 16, 16) for seed in range(4)]
    artifact = export(Gate(), inputs, tmp_path / "a", "int8", calibration=batches, profile=True)
    beside = {each.op: each for each in artifact.achieved.float_activations}
    assert (beside["silu"].module_path, beside["silu"].elements, beside["silu"].bytes) == ("c.1", 1024, 4096)
    assert (beside["hardswish"].module_path, beside["hardswish"].elements) == ("c.3", 1024)
    listed = artifact.summary()["achieved"]["float_activations"]
    assert [each["name"] for each in listed] == [each.name for each in artifact.achieved.float_activations]
    assert any(each["time_share"] is not None for each in listed if each["op"] == "silu")
    profile = artifact.profile
    assert profile is not None and profile.worth_it is not None
    assert bool(profile.findings) is (profile.worth_it < 1.0), "slower than float is said, and nothing else"
    (mean,) = [layer for layer in artifact.achieved.layers if layer.op == "mean"]
    assert (mean.precision == "int8") is not ("mean" in beside), "a layer is counted in one of the two"
