"""Pruning and distillation on a real Trainer: shapes, masks and projections survive a resumed run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

import deploykit
from deploykit.lightning import Distillation, Pruning, QuantizationAwareTraining
from deploykit_training.pruning.masks import masks_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::FutureWarning", "ignore:.*LeafSpec.*")

EXAMPLE = (torch.zeros(1, 1, 8, 8),)


def network(width: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    body = [nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 10))


class Digits(LightningModule):
    def __init__(self, *, as_dict: bool = False) -> None:
        super().__init__()
        self.net, self.as_dict = network(), as_dict

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.net(x)
        return result

    def training_step(self, batch: Any, index: int) -> Any:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        return {"loss": loss, "kept": 1} if self.as_dict else loss

    def test_step(self, batch: Any, index: int) -> None:
        self.log("loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-2)


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Trainer]:
    def make(*callbacks: Any, **arguments: Any) -> Trainer:
        options: dict[str, Any] = {
            "max_epochs": 1,
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
        }
        return Trainer(callbacks=list(callbacks), default_root_dir=tmp_path, **(options | arguments))

    return make


def test_channels_go_before_the_optimizer_is_made_and_a_resumed_run_has_the_same(
    trainer: Any, loader: Any, tmp_path: Path
) -> None:
    module, callback = Digits(), Pruning(ratio=0.5, scope="global", example_inputs=EXAMPLE)
    keys = list(module.state_dict())
    run = trainer(callback)
    run.fit(module, loader)
    assert callback.report is not None and callback.report.macs_after < callback.report.macs_before / 2
    widths = module.net[0].out_channels, module.net[3].out_channels
    assert sum(widths) == 8 and list(module.state_dict()) == keys
    assert all(state["exp_avg"].shape == p.shape for p, state in run.optimizers[0].state.items())
    path = tmp_path / "run.ckpt"
    run.save_checkpoint(path)
    assert list(torch.load(path, weights_only=False)["state_dict"]) == keys
    fresh = Digits()
    trainer(Pruning(scope="global", example_inputs=EXAMPLE)).test(fresh, loader, ckpt_path=str(path), verbose=False)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), fresh.parameters(), strict=True))
    resumed = Digits()
    trainer(Pruning(scope="global", example_inputs=EXAMPLE), max_epochs=2).fit(resumed, loader, ckpt_path=str(path))
    assert (resumed.net[0].out_channels, resumed.net[3].out_channels) == widths
    assert not torch.equal(resumed.net[0].weight, module.net[0].weight)


def test_masks_last_until_fit_ends_and_are_those_of_the_checkpoint(trainer: Any, loader: Any, tmp_path: Path) -> None:
    module = Digits()
    run = trainer(Pruning(kind="unstructured", module="net", example_inputs=EXAMPLE, keep_masks=True))
    run.fit(module, loader)
    zero = module.net[3].weight.detach() == 0
    assert float(zero.float().mean()) == 0.5 and len(masks_of(module)) == 3
    path = tmp_path / "run.ckpt"
    run.save_checkpoint(path)
    resumed = Digits()
    with torch.no_grad():
        resumed.net[3].weight.copy_(torch.rand_like(resumed.net[3].weight))  # its own smallest would be others
    again = trainer(Pruning(kind="unstructured", module="net", example_inputs=EXAMPLE), max_epochs=2)
    again.fit(resumed, loader, ckpt_path=str(path))
    assert torch.equal(resumed.net[3].weight == 0, zero) and not masks_of(resumed)
    assert not torch.equal(resumed.net[3].weight, module.net[3].weight)


@pytest.mark.parametrize("as_dict", [False, True])
def test_a_teacher_is_heard_whatever_the_step_returns(trainer: Any, loader: Any, as_dict: bool) -> None:
    module, teacher = Digits(as_dict=as_dict), network(16)
    terms = deploykit.Response() + deploykit.Feature({"net.2": "2"})
    keys, callback = list(module.state_dict()), Distillation(teacher, terms)
    run = trainer(callback)
    run.fit(module, loader)
    assert {"distillation/response", "distillation/feature", "distillation/task"} <= set(run.logged_metrics)
    assert "training_step" not in module.__dict__ and list(module.state_dict()) == keys
    assert len(run.optimizers[0].param_groups[0]["params"]) == len(list(module.parameters()))
    projection = callback.state_dict()["terms.1.projections.0.weight"]
    drawn = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)) / 8**0.5
    assert projection.shape == (16, 8) and not torch.equal(projection, drawn)
    assert teacher.training and all(p.grad is None for p in teacher.parameters())
    alone, student = trainer(), Digits(as_dict=as_dict)
    alone.fit(student, loader)
    assert not torch.equal(student.net[0].weight, module.net[0].weight)


def test_a_student_that_is_not_called_is_named(trainer: Any, loader: Any) -> None:
    module = Digits()
    module.training_step = lambda batch, index: module.net(batch[0]).sum()  # type: ignore[method-assign]
    step = module.__dict__["training_step"]
    with pytest.raises(deploykit.UsageError, match=r"did not call self\(\.\.\.\)"):
        trainer(Distillation(network())).fit(module, loader)
    assert module.__dict__["training_step"] is step
    with pytest.raises(deploykit.UsageError, match="no submodule 'body'"):
        trainer(Distillation(network(), module="body")).fit(module, loader)
    with pytest.raises(deploykit.UsageError, match="no submodule 'body'"):
        trainer(Pruning(module="body", example_inputs=EXAMPLE)).fit(module, loader)


@pytest.mark.parametrize("kind", ["structured", "unstructured"])
def test_together_with_training_for_a_target(trainer: Any, loader: Any, digits: Any, kind: str) -> None:
    module, teacher = Digits(), network(16)
    training = QuantizationAwareTraining("x86-cpu", example_inputs=EXAMPLE, calibration=[digits[0][:32]])
    pruning = Pruning(kind=kind, example_inputs=EXAMPLE)
    trainer(pruning, training, Distillation(teacher)).fit(module, loader)
    assert pruning.report is not None
    if kind == "structured":
        assert module.net[0].out_channels == 4
    else:
        assert float((module.net[3].weight == 0).float().mean()) == 0.5
    features = trainer(training, Distillation(teacher, deploykit.Feature({"net.2": "2"})))
    with pytest.raises(deploykit.UsageError, match=r"net.2 of Digits was not called"):
        features.fit(module, loader)
