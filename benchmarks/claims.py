"""Whether an artifact does what it says: int8 beside its simulation, and the claimed SQNR beside fresh inputs.

    python benchmarks/claims.py [--models residual_cnn digits_resnet ...] [--targets x86-cpu ...] [--samples 16]
    qemu-x86_64-static -cpu Haswell python benchmarks/claims.py --models mlp residual_cnn --targets x86-cpu

The second line shows a CPU without VNNI on one that has it. Small models of the zoo, and networks of `quality.py`; a
target that is not installed is left out and named. Fresh inputs are drawn as the calibration data were, by another
seed, or are the test set; integers are drawn anew, too. `claimed` is the SQNR of the report, `at least` the lower end
of what its samples tell of others, which the gate takes. Goals: `claimed` at most 1 dB below `simulation`, and `fresh`
at most 2 dB below `at least` and at most 2 dB above `claimed`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
import numpy as np
import quality
import torch
from harness import quiet, report, scratch

import deploykit
from deploykit.contract.errors import DeploykitError, MissingDependencyError
from deploykit.testing.models import ZOO

TARGETS = (
    *("x86-cpu", "x86-cpu:openvino", "x86-cpu-avx2", "x86-cpu:aotinductor", "x86-cpu:tvm"),
    *("jetson-orin", "amd-mi300x", "android", "iphone-15"),
)
NETWORKS = ("digits_mobilenet", "digits_resnet", "vit", "bert")
WITHIN_SIMULATION_DB, WITHIN_FRESH_DB = 1.0, 2.0
Inputs = tuple[Any, ...]


@dataclass(frozen=True)
class Case:
    """A model, the samples that it is calibrated with, and others; one tuple of tensors each."""

    model: Any
    example: Any
    calibration: list[Any]
    fresh: list[Any]


def case(name: str, samples: int) -> Case:
    """A model by name."""
    if name in ZOO:
        model, example = ZOO[name]()
        return Case(model, example, drawn(example, samples, 1), drawn(example, 64, 2))
    if name == "two_tower":
        model, example = two_tower()
        return Case(model, example, drawn(example, samples, 1), drawn(example, 64, 2))
    found = quality.CASES[name]()
    return Case(found.model, found.calibration[0], found.calibration, _fresh(name, found.test)[:64])


def _fresh(name: str, test: list[Inputs]) -> list[Inputs]:
    """The test samples; of networks with random weights as many as of the others."""
    more = {
        "vit": lambda: [(image[None],) for image in models.images(64, 64, seed=9)],
        "bert": lambda: models.token_batches(64, 64, seed=9),
    }
    return more[name]() if name in more else test


def two_tower() -> tuple[torch.nn.Module, Inputs]:
    """Recommendation in small: two stacks of layers, and the product of what they make of a user and an item."""

    class TwoTower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.user, self.item = (
                torch.nn.Sequential(torch.nn.Linear(n, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32)) for n in (24, 40)
            )

        def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
            return (self.user(user) * self.item(item)).sum(-1)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TwoTower().eval(), (torch.randn(4, 24), torch.randn(4, 40))


def drawn(example: Any, count: int, seed: int) -> list[Any]:
    """Normal noise in the shapes of the example; integers up to the largest of the example, truth values as often."""
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point():
            return torch.randn(tensor.shape, generator=generator)
        if tensor.dtype == torch.bool:
            return torch.rand(tensor.shape, generator=generator) < float(tensor.double().mean())
        low, high = int(tensor.min()), int(tensor.max())
        return torch.randint(low, high + 1, tensor.shape, generator=generator, dtype=tensor.dtype)

    if isinstance(example, dict):
        return [{name: noise(tensor) for name, tensor in example.items()} for _ in range(count)]
    return [tuple(noise(tensor) for tensor in example) for _ in range(count)]


def sqnr_db(reference: list[np.ndarray], got: list[np.ndarray]) -> float:
    """10 log10 of signal over noise, all samples together; 200 where they are equal, as reports have it."""
    signal = sum(float((a.astype(np.float64) ** 2).sum()) for a in reference)
    pairs = zip(reference, got, strict=True)
    noise = sum(float(((a.astype(np.float64) - b.astype(np.float64)) ** 2).sum()) for a, b in pairs)
    return min(200.0, 10 * math.log10(signal / noise)) if noise and signal else 200.0


def fresh_db(model: Any, artifact: deploykit.Artifact, fresh: Sequence[Any]) -> float:
    """The worst output over inputs that the export never saw, measured as a user would."""
    expected: list[list[np.ndarray]] = []
    found: list[list[np.ndarray]] = []
    with artifact.plugin().open_for_parity(artifact) as session, torch.no_grad():
        for sample in fresh:
            tensors = list(sample.values()) if isinstance(sample, dict) else list(sample)
            got = session.run({s.name: t.numpy() for s, t in zip(session.inputs, tensors, strict=True)})
            answer = model(**sample) if isinstance(sample, dict) else model(*sample)
            expected.append([leaf.numpy() for leaf in torch.utils._pytree.tree_leaves(answer)])
            found.append(list(got.values()))
    outputs = range(len(expected[0]))
    return min(sqnr_db([e[i] for e in expected], [f[i] for f in found]) for i in outputs)


def claims(name: str, samples: int, targets: Sequence[str], folder: Path) -> Iterator[dict[str, Any]]:
    """One row per target."""
    for target in targets:
        given = case(name, samples)
        row: dict[str, Any] = {"model": name, "target": target}
        try:
            with quiet():
                artifact = deploykit.export(
                    given.model,
                    target=target,
                    precision="int8",
                    example_inputs=given.example,
                    calibration=given.calibration,
                    profile=False,
                    strict=False,
                    progress=False,
                    output=folder / f"{name}-{target.replace(':', '-')}",
                )
                measured = fresh_db(given.model, artifact, given.fresh)
        except MissingDependencyError:
            continue
        except DeploykitError as error:
            yield row | {"status": f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"}
            continue
        parity = artifact.parity
        assert parity is not None
        claimed = parity.sqnr_db
        simulated = parity.quantization.worst.sqnr_db if parity.quantization else None
        row |= {"status": artifact.status, "evidence": str(parity.evidence)}
        row |= {"simulation dB": "nothing is int8" if simulated is None else round(simulated, 1)}
        least = parity.spread.low_db if parity.spread else claimed
        row |= {"claimed dB": round(claimed, 1), "at least dB": round(least, 1), "fresh dB": round(measured, 1)}
        yield row | {
            "as simulated": simulated is None or claimed >= simulated - WITHIN_SIMULATION_DB,
            "as claimed": least - WITHIN_FRESH_DB <= measured <= claimed + WITHIN_FRESH_DB,
        }


def _count(rows: Sequence[Mapping[str, Any]], column: str) -> str:
    return f"{sum(bool(row[column]) for row in rows)} of {len(rows)}"


def _near(rows: Sequence[Mapping[str, Any]]) -> int:
    return sum(abs(row["claimed dB"] - row["fresh dB"]) <= WITHIN_FRESH_DB for row in rows)


def main() -> None:
    """Measure, print, and write results/claims.json (or claims_<suffix>.json)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[*ZOO, "two_tower", *NETWORKS])
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--samples", type=int, default=16, help="calibration samples of the small models")
    parser.add_argument("--suffix", default="", help="of the result's name, such as haswell or tvm")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with scratch() as folder:
        for name in arguments.models:
            rows += claims(name, arguments.samples, arguments.targets, folder)
    left_out = sorted({*arguments.targets} - {row["target"] for row in rows})
    judged = [row for row in rows if "as claimed" in row]
    notes = [
        f"as simulated (at most {WITHIN_SIMULATION_DB:g} dB below): {_count(judged, 'as simulated')}",
        f"as claimed (fresh inputs within {WITHIN_FRESH_DB:g} dB of what is claimed): {_count(judged, 'as claimed')}",
        f"`claimed` itself within {WITHIN_FRESH_DB:g} dB of `fresh`: {_near(judged)} of {len(judged)}",
        f"{arguments.samples} calibration samples of the small models, fresh ones 64; the networks as in quality.py",
    ]
    notes += [f"not installed, left out: {', '.join(left_out)}"] if left_out else []
    report("claims" + (f"_{arguments.suffix}" if arguments.suffix else ""), rows, notes=notes)


if __name__ == "__main__":
    main()
