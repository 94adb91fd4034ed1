"""Two processes train one model: `python ddp.py FOLDER qat|structured|2:4`. Run by `test_ddp.py`.

Every process writes its gradients of the first step, its parameters after twenty steps, and the state of its callbacks.
"""

from __future__ import annotations

import copy
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from deploykit import Feature, Response
from deploykit.lightning import Distillation, Export, Pruning, QuantizationAwareTraining


class Digits(LightningModule):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10), nn.Dropout(0.1)
        )
        self.folder = folder

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.net(x)
        return result

    def training_step(self, batch: Any, index: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-2)

    def on_after_backward(self) -> None:
        if self.trainer.global_step == 0:
            self._keep("gradients", [p.grad for p in self.parameters()])

    def on_train_end(self) -> None:
        self._keep("parameters", [p.detach() for p in self.parameters()])
        self._keep("steps", self.trainer.global_step)

    def _keep(self, name: str, value: Any) -> None:
        torch.save(value, self.folder / f"{name}-{self.global_rank}.pt")


def main(folder: Path, what: str) -> None:
    warnings.filterwarnings("ignore")
    seed_everything(0, verbose=False)
    torch.set_num_threads(1)
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels))
    module = Digits(folder)
    callbacks = trained_for_a_target(folder) if what == "qat" else made_smaller(what, module)
    run = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_steps=20,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    run.fit(module, DataLoader(data, batch_size=32, shuffle=True))
    torch.save([each.state_dict() for each in callbacks[:2]], folder / f"states-{run.global_rank}.pt")


def trained_for_a_target(folder: Path) -> list[Any]:
    qat = QuantizationAwareTraining(target="x86-cpu", batches=4, scales="learned")
    return [qat, Export(targets=["x86-cpu"], output=folder / "out")]


def made_smaller(kind: str, module: Digits) -> list[Any]:
    """Weights and random numbers differ on the second process: what it decides by itself would be something else."""
    teacher = copy.deepcopy(module.net).requires_grad_(False)
    example, own = torch.randn(1, 1, 8, 8), {"round_to": 1} if kind == "structured" else {}
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    torch.manual_seed(rank)
    with torch.no_grad():
        module.net[0].weight.add_(rank * torch.randn(8, 1, 3, 3))
    pruning = Pruning(kind=kind, module="net", example_inputs=(example,), keep_masks=True, **own)
    return [pruning, Distillation(teacher, Response() + Feature({"2": "2"}), module="net")]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
