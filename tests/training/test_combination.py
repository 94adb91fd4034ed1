"""`deploykit.compress`: every step with its metric, none that makes it worse, and the passed model as it was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import deploykit

Digits = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def network(digits: Digits) -> nn.Module:
    """Trained on 600 digits, in a second."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AvgPool2d(2)]
        net = nn.Sequential(*body, nn.Flatten(), nn.Linear(144, 10))
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for step in range(60):
            part = slice(step * 50 % 600, step * 50 % 600 + 50)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(digits[0][part]), digits[1][part]).backward()
            optimizer.step()
    return net.eval()


@pytest.fixture
def accuracy(digits: Digits) -> Any:
    def measure(session: deploykit.Session) -> float:
        answers = session.run({session.inputs[0].name: digits[0][600:900].numpy()})[session.outputs[0].name]
        return float((answers.argmax(1) == digits[1][600:900].numpy()).mean())

    return measure


def arguments(digits: Digits, output: Path) -> dict[str, Any]:
    loader = [(digits[0][i : i + 50], digits[1][i : i + 50]) for i in range(0, 600, 50)]
    return {
        "train": loader,
        "example_inputs": (digits[0][:2],),
        "calibration": [digits[0][:100]],
        "dynamic_batch": True,
        "pruning": {"round_to": 4},
        "training": {"epochs": 3, "lr": 5e-3},
        "profile": False,
        "progress": False,
        "output": output,
    }


def test_every_step_has_its_metric_and_the_artifact_is_what_was_trained(
    digits: Digits, network: nn.Module, accuracy: Any, tmp_path: Path
) -> None:
    before = copy.deepcopy(network.state_dict())
    found = deploykit.compress(network, **arguments(digits, tmp_path / "a"), evaluate=accuracy, max_drop=0.05)
    steps = {step.name: step for step in found.steps}
    assert list(steps) == ["float", "prune", "train", "quantise", "qat", "export"]
    assert steps["train"].metric is not None and steps["prune"].metric is not None
    assert steps["train"].metric >= steps["prune"].metric and "steps of distillation" in steps["train"].detail
    assert "left out" in steps["qat"].detail or (steps["qat"].metric or 0) >= (steps["quantise"].metric or 1)
    with found.artifact.open() as session:
        assert accuracy(session) == steps["export"].metric
        answers = session.run({session.inputs[0].name: digits[0][:64].numpy()})[session.outputs[0].name]
    wanted = found.model.eval()(digits[0][:64]).detach().numpy()
    assert np.mean(answers.argmax(1) == wanted.argmax(1)) > 0.9
    assert found.artifact.status == "verified" and found.model.get_submodule("0").out_channels == 8
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert "distillation" in str(found) and found.to_dict()["pruned"]["macs_after"] == found.pruned.macs_after


def test_training_of_your_own_is_used_twice_and_masks_stay_zero(
    digits: Digits, network: nn.Module, train: Any, tmp_path: Path
) -> None:
    seen: list[nn.Module] = []

    def own(model: nn.Module) -> None:
        seen.append(model)
        train(model, steps=2, lr=1e-3)

    options = arguments(digits, tmp_path / "a") | {"train": own, "training": None}
    found = deploykit.compress(network, **options, kind="unstructured", ratio=0.5)
    assert seen == [found.model, found.model] and found.pruned.sparsity == pytest.approx(0.5)
    weights = [p for p in found.model.parameters() if p.dim() > 1]
    assert sum(int((w == 0).sum()) for w in weights) == sum(w.numel() // 2 for w in weights)
    assert not any(m._forward_pre_hooks for m in found.model.modules())
    assert [step.metric for step in found.steps] == [None] * 6


def test_what_lowers_the_metric_is_taken_back_and_too_much_lost_is_an_error(
    digits: Digits, network: nn.Module, tmp_path: Path
) -> None:
    falling = iter([0.9, 0.8, 0.1, 0.75, 0.1, 0.7])  # float, prune, train, quantise, qat, export
    options = arguments(digits, tmp_path / "a")
    with pytest.raises(deploykit.ParityError, match=r"metric is 0.7, the float model's 0.9") as caught:
        deploykit.compress(network, **options, evaluate=lambda session: next(falling), max_drop=0.01)
    text = str(caught.value)
    assert text.count("taken back: 0.1") == 2 and caught.value.candidate is not None


def test_a_precision_without_ranges_needs_no_training_for_it(
    digits: Digits, network: nn.Module, tmp_path: Path
) -> None:
    options = arguments(digits, tmp_path / "a") | {"training": {"max_steps": 1}}
    found = deploykit.compress(network, precision="fp32", **options)
    assert [step.name for step in found.steps][-2:] == ["qat", "export"]
    assert "fixes no ranges" in found.steps[-2].detail


def test_an_optimizer_cannot_be_passed(network: nn.Module, digits: Digits, tmp_path: Path) -> None:
    options = arguments(digits, tmp_path) | {"training": {"optimizer": torch.optim.SGD(network.parameters(), 0.1)}}
    with pytest.raises(deploykit.UsageError, match="before it is pruned"):
        deploykit.compress(network, **options)
