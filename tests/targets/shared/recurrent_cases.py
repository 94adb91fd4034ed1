"""Small recurrent models, and what their int8 artifacts are held to on every target that writes their steps out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="exporting needs PyTorch")
from torch import Tensor, nn  # noqa: E402

import deploykit  # noqa: E402

INPUTS, UNITS, STEPS = 8, 16, 3
CASES: Mapping[str, tuple[type[nn.RNNBase], Mapping[str, Any]]] = {
    "lstm of two layers": (nn.LSTM, {"num_layers": 2, "batch_first": True}),
    "lstm of both directions": (nn.LSTM, {"bidirectional": True}),
    "lstm with a projection": (nn.LSTM, {"proj_size": 12, "batch_first": True}),
    "gru of two layers": (nn.GRU, {"num_layers": 2}),
    "gru of both directions": (nn.GRU, {"bidirectional": True, "batch_first": True}),
    "rnn": (nn.RNN, {"batch_first": True}),
}


class Recurrent(nn.Module):
    """A recurrent layer that is given its initial state and returns its final one, and a head."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = kind(INPUTS, UNITS, **options)
        self.head = nn.Linear((options.get("proj_size") or UNITS) * (1 + self.layers.bidirectional), 4)

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        given = states if isinstance(self.layers, nn.LSTM) else states[0]
        found, final = self.layers(x, given)
        return (self.head(found), *(final if isinstance(final, tuple) else (final,)))


class Tagger(nn.Module):
    """A recurrent layer of batches first, from zeros, and a head of every step."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.head = kind(INPUTS, UNITS, batch_first=True), nn.Linear(UNITS, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.layers(x)[0])
        return found


def sequences(count: int) -> list[Tensor]:
    """Batches of one for a `Tagger`."""
    return list(torch.randn(count, 1, STEPS, INPUTS, generator=torch.Generator().manual_seed(0)))


def data_of(case: str, batches: int = 16) -> tuple[nn.Module, list[tuple[Tensor, ...]]]:
    """The model of a case, and batches for it: a sequence, and the initial states."""
    kind, options = CASES[case]
    model = Recurrent(kind, **options).eval()
    x = (1, STEPS, INPUTS) if options.get("batch_first") else (STEPS, 1, INPUTS)
    cells = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    states = [(cells, 1, options.get("proj_size", UNITS)), (cells, 1, UNITS)][: 1 + (kind is nn.LSTM)]
    draw = torch.Generator().manual_seed(0)
    return model, [
        (torch.randn(x, generator=draw), *(torch.rand(shape, generator=draw) - 0.5 for shape in states))
        for _ in range(batches)
    ]


def exported(case: str, target: str, folder: Path, **options: Any) -> deploykit.Artifact:
    """The int8 artifact of a case."""
    model, data = data_of(case)
    return deploykit.export(
        model, target, "int8", example_inputs=data[0], calibration=data, output=folder,
        **{"progress": False, "profile": False, **options},
    )  # fmt: skip


def check(artifact: deploykit.Artifact) -> None:
    """All products are int8, what runs is what was simulated, and the user is told that steps are written out."""
    assert artifact.status == "verified"
    assert artifact.achieved.macs_fraction("int8") >= 0.8
    assert any("written out step by step" in note for note in artifact.achieved.notes) == (
        "projection" not in artifact.path.name  # projections are written out in every precision
    )
    assert artifact.parity is not None and artifact.parity.quantization is not None
    assert artifact.parity.sqnr_db is not None and artifact.parity.sqnr_db >= 30.0
    assert artifact.parity.sqnr_db == pytest.approx(artifact.parity.quantization.worst.sqnr_db, abs=1.0)
