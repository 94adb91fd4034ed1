"""How far an artifact is from the simulation that its parity report judged: for the tests of a target's own scheme."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import nn

import deploykit
from deploykit.judge.parity import Link


def lowering(
    make: Callable[[], tuple[nn.Module, torch.Tensor]], target: str, folder: Path, *, strict: bool = True
) -> Link:
    """Export a small network in int8, and compare the artifact with its simulation.

    Args:
        make: returns the network and a batch of its input; both are made from seed 0, and six further batches of
            the same shape and distribution by calling it again.
        target: such as `android`.
        folder: where the artifact is written.
        strict: False where a network this small misses a gate that is not the test's subject.
    Raises:
        DeploykitError: what `deploykit.export` raises.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, first = make()
        data = [first, *(make()[1] for _ in range(7))]
    artifact = deploykit.export(
        model.eval(),
        target=target,
        precision="int8",
        example_inputs=(first,),
        calibration=data,
        output=folder,
        profile=False,
        progress=False,
        strict=strict,
    )
    assert artifact.parity is not None and artifact.parity.lowering is not None
    return artifact.parity.lowering


def median_db(link: Link) -> float:
    """The median sample's SQNR; infinite where nothing differs.

    Of many samples one may hold a value half-way between two integers, which either side may turn otherwise.
    """
    return median(link.worst.spread.sample_db) if link.worst.spread else float("inf")
