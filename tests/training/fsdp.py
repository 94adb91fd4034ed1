"""Two processes train one model for a target, its root sharded: `python fsdp.py FOLDER`. Run by `test_fsdp.py`.

Every process writes the whole parameters after ten steps, and what sharding a layer of its own is answered with.
"""

from __future__ import annotations

import copy
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import deploykit
from deploykit.contract.errors import ConversionError


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
    ).train(False)  # fmt: skip


def trained(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(10):
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()


def started(model: nn.Module, images: Tensor) -> Any:
    return deploykit.qat(model, example_inputs=(images[:1],), calibration=[images], progress=False)


def whole(model: nn.Module) -> list[Tensor]:
    found = [each.detach() for each in model.parameters()]
    return [each.full_tensor() if isinstance(each, DTensor) else each for each in found]


def main(rank: int, folder: str) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    images = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels, mesh = torch.arange(32) % 10, distributed.init_device_mesh("cpu", (2,))
    model = network()
    alone = copy.deepcopy(model)
    run = started(model, images)
    fully_shard(model, mesh=mesh)
    with run:
        trained(model, images[rank::2], labels[rank::2])
    with started(alone, images):
        trained(alone, images, labels)
    found = whole(model)
    model.unshard()
    artifact = run.export(output=Path(folder) / f"a-{rank}", profile=False, progress=False)
    (Path(folder) / f"reference-{rank}.txt").write_text(artifact.parity.chain[0].reference)
    torch.save((found, whole(alone)), Path(folder) / f"parameters-{rank}.pt")

    model = network()
    run = started(model, images)
    fully_shard(model[0], mesh=mesh)
    try:
        with run:
            trained(model, images, labels)
    except ConversionError as error:
        (Path(folder) / f"refused-{rank}.txt").write_text(str(error))
    distributed.destroy_process_group()


if __name__ == "__main__":
    multiprocessing.spawn(main, (sys.argv[1],), nprocs=2)
