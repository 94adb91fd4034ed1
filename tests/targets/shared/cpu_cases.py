"""Tiny models whose int8 products saturate on a CPU without VNNI unless sums are exact. As a program it exports them.

    python cpu_cases.py TARGET FOLDER PRECISION:NAME [...]     one JSON line per model, in FOLDER/PRECISION/NAME

Weights of a normal distribution, whose largest are at 127, and a row or two of input are enough: pairs of products
reach 2 x 255 x 127, and 16 bits end at 32767.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import deploykit
from deploykit.contract.cpuid import emulator

Inputs = tuple[Tensor, ...]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Attention(nn.Module):
    """Cross attention with other sizes of key and value, and a padding mask."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(32, 4, batch_first=True, kdim=24, vdim=20)
        self.out = nn.Linear(32, 8)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, pad: Tensor) -> tuple[Tensor, Tensor]:
        y, weights = self.attend(q, k, v, key_padding_mask=pad)
        return self.out(y), weights


class Recurrent(nn.Module):
    """A recurrent layer and what reads it."""

    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.layer, self.out = kind(64, 64, batch_first=True), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Any:
        return self.out(self.layer(x)[0])


class Embedded(nn.Module):
    """Rows of a table, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(50, 64), nn.Linear(64, 8)

    def forward(self, ids: Tensor) -> Any:
        return self.out(self.table(ids))


class TwoActivations(nn.Module):
    """A product of two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Any:
        return self.a(x) @ self.b(x).transpose(-1, -2)


class Shared(nn.Module):
    """One layer read three times: its weight is stored once."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(torch.relu(self.layer(torch.relu(self.layer(x)))))


class BothWays(nn.Module):
    """One matrix as it is and transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(0, 64, 64) / 8)

    def forward(self, x: Tensor) -> Any:
        return torch.relu(x @ self.weight) @ self.weight.t()


class Stack(nn.Module):
    """A stack of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(0, 3, 64, 64) / 8)

    def forward(self, x: Tensor) -> Any:
        return x @ self.weight


def _tokens(seed: int) -> Inputs:
    return (torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(seed)),)


def _attended(seed: int) -> Inputs:
    pad = torch.arange(9)[None] >= torch.tensor([[9 - seed % 3], [5 + seed % 3]])
    return normal(seed, 2, 5, 32), normal(seed + 1, 2, 9, 24), normal(seed + 2, 2, 9, 20), pad


@dataclass(frozen=True)
class Case:
    """A model and its inputs by seed."""

    model: Callable[[], nn.Module]
    example: Callable[[int], Inputs]


CASES = {
    "linear": Case(lambda: nn.Linear(64, 5), lambda s: (normal(s, 1, 64),)),
    "batch": Case(lambda: nn.Linear(64, 5), lambda s: (normal(s, 16, 64),)),
    "attention": Case(Attention, _attended),
    "conv1d": Case(
        lambda: nn.Sequential(nn.Conv1d(16, 32, 3), nn.ReLU(), nn.Conv1d(32, 8, 3)), lambda s: (normal(s, 2, 16, 32),)
    ),
    "conv_transpose": Case(
        lambda: nn.Sequential(nn.ConvTranspose2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3)),
        lambda s: (normal(s, 1, 16, 8, 8),),
    ),
    "groups": Case(
        lambda: nn.Sequential(
            *(nn.Conv2d(16, 32, 3, groups=4), nn.ReLU(), nn.Conv2d(32, 32, 3, groups=32)),
            *(nn.ReLU(), nn.Conv2d(32, 8, 1)),
        ),
        lambda s: (normal(s, 1, 16, 12, 12),),
    ),
    "conv3d": Case(
        lambda: nn.Sequential(nn.Conv3d(4, 16, 3), nn.ReLU(), nn.Conv3d(16, 8, 3)),
        lambda s: (normal(s, 1, 4, 8, 8, 8),),
    ),
    "two_activations": Case(TwoActivations, lambda s: (normal(s, 2, 9, 64),)),
    "lstm": Case(lambda: Recurrent(nn.LSTM), lambda s: (normal(s, 2, 5, 64),)),
    "gru": Case(lambda: Recurrent(nn.GRU), lambda s: (normal(s, 2, 5, 64),)),
    "embedding": Case(Embedded, _tokens),
    "shared": Case(lambda: Shared(nn.Linear(64, 64)), lambda s: (normal(s, 2, 64),)),
    "shared_conv": Case(lambda: Shared(nn.Conv2d(16, 16, 3, padding=1)), lambda s: (normal(s, 1, 16, 8, 8),)),
    "both_ways": Case(BothWays, lambda s: (normal(s, 2, 64),)),
    "stack": Case(Stack, lambda s: (normal(s, 3, 5, 64),)),
}


def export(name: str, target: str, precision: str, folder: Path, samples: int = 16) -> deploykit.Artifact:
    """Export a case, gates reported and not enforced."""
    torch.manual_seed(0)
    model, example = CASES[name].model().eval(), CASES[name].example
    static = deploykit.Precision(precision).is_static
    return deploykit.export(
        model,
        target=target,
        precision=precision,
        example_inputs=example(0),
        calibration=[example(seed) for seed in range(100, 100 + samples)] if static else None,
        output=folder / name,
        profile=False,
        strict=False,
        progress=False,
    )


def figures(artifact: deploykit.Artifact) -> dict[str, Any]:
    """What was reached: SQNR in dB of the simulation (None where there is none) and of the artifact, and how."""
    parity = artifact.parity
    assert parity is not None
    simulated = parity.quantization.worst.sqnr_db if parity.quantization else None
    return {
        "simulated": simulated,
        "artifact": parity.chain[-1].worst.sqnr_db,
        "evidence": parity.evidence.value,
        "notes": list(parity.notes),
        "vnni": parity.host.has("vnni"),
        "int8": artifact.achieved.macs_fraction("int8"),
    }


def main() -> None:
    """See the top of this file."""
    target, folder, *cases = sys.argv[1:]
    if emulator():  # PyTorch's oneDNN has an LSTM that is wrong under QEMU, and right on a Haswell
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    for precision, name in (case.split(":") for case in cases):
        artifact = export(name, target, precision, Path(folder) / precision, samples=4)
        print(json.dumps({"name": name, "precision": precision, **figures(artifact)}), flush=True)


if __name__ == "__main__":
    main()
