"""An algorithm of one's own, in one file: weights are rounded so that a layer's output changes least.

    python examples/own_algorithm.py [--output FOLDER]

After GPTQ (Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022):
inputs of a layer are rounded one column after the other, and what each rounding does to the output is taken out of the
columns that are still to come. It changes the float graph alone, and so serves every target and precision of 8 bits.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

import deploykit
from deploykit import pipeline
from deploykit.capture.calls import stored
from deploykit_calibration.algorithms import SAMPLES, Algorithm, Samples, register
from deploykit_calibration.prepared import Prepared
from deploykit_calibration.reweigh import with_weights
from deploykit_calibration.simulate import values

LIMIT = 127
DAMPING = 0.01


def gptq(prepared: Prepared, samples: Samples) -> Prepared:
    """The same model, whose linear layers have weights that rounding to 8 bits leaves as they are."""
    captured = prepared.captured
    layers = {
        node.args[0].name: str(node.args[1].target)
        for node in captured.graph_module.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
        if node.args[1].op == "get_attr"
    }
    hessians = _hessians(prepared, samples, frozenset(layers))
    weights = {name: stored(captured.graph_module, name).detach() for name in layers.values()}
    rounded = {name: _rounded(weights[name], hessians[source]) for source, name in layers.items()}
    return replace(prepared, captured=with_weights(captured, rounded))


def _hessians(prepared: Prepared, samples: Samples, watched: frozenset[str]) -> Mapping[str, Tensor]:
    """Sum of x x' over everything that a layer reads, float64, shape (inputs, inputs), by what it reads."""
    found: dict[str, Tensor] = {}
    for feeds in samples:
        inputs = [feeds[spec.name] for spec in prepared.captured.inputs]
        for name, value in values(prepared.captured.graph_module, inputs, watched):
            rows = value.double().reshape(-1, value.shape[-1])
            found[name] = found.get(name, 0) + rows.T @ rows
    return found


def _rounded(weight: Tensor, hessian: Tensor) -> Tensor:
    """A (outputs, inputs) weight on the grid of 8 bits with one scale per output, whose largest elements stay."""
    size = hessian.shape[0]
    scale = weight.abs().amax(1).clamp(min=1e-12).double() / LIMIT
    fixed = weight.abs().argmax(1)
    hessian = hessian + torch.eye(size) * DAMPING * hessian.diagonal().mean()
    inverse = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    left, result = weight.double().clone(), torch.empty_like(weight, dtype=torch.float64)
    for column in range(size):
        wanted = torch.where(fixed == column, weight[:, column].double(), left[:, column])
        result[:, column] = (wanted / scale).round().clamp(-LIMIT, LIMIT) * scale
        error = (wanted - result[:, column]) / inverse[column, column]
        left[:, column + 1 :] -= error[:, None] * inverse[column, column + 1 :]
    return result.float()


GPTQ = register(
    Algorithm(
        "own-gptq",
        gptq,
        cost="a run on samples and the inverse of a matrix per layer",
        needs=frozenset({SAMPLES}),
        source="Frantar et al. (2022)",
    )
)


def batches(seed: int = 0) -> Iterator[Tensor]:
    """Inputs with few directions, as those of real layers are."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(4, 64, generator=torch.Generator().manual_seed(99))
    for _ in range(64):
        yield torch.randn(4, 4, generator=generator) @ directions + 0.05 * torch.randn(4, 64, generator=generator)


def main() -> None:
    """Export a network to two targets, with and without."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("out"))
    output = parser.parse_args().output
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)).eval()
    captured = pipeline.capture(model, example_inputs=(next(batches()),))
    run = pipeline.calibrate(captured, list(batches()), progress=False)
    for target in ("x86-cpu", "jetson-orin"):
        for algorithms in ((), (GPTQ.name,)):
            artifact = deploykit.export(
                captured,
                target,
                calibration=run,
                algorithms=algorithms,
                profile=False,
                progress=False,
                output=output / f"algorithm-{target}-{'-'.join(algorithms) or 'none'}",
            )
            assert artifact.parity is not None
            print(f"{target:<12} {'gptq' if algorithms else '':<5} SQNR {artifact.parity.sqnr_db:.1f} dB")


if __name__ == "__main__":
    main()
