"""The last rung: the user's training is kept where it helps, and undone where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import deploykit

WANTED = 0.5
"""What the task wants of every output; the float model gives about zero."""


def draw(seed: int) -> torch.Tensor:
    return torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5))
    return nn.Sequential(*layers).eval()


def near(session: Any) -> list[float]:
    given, got = session.inputs[0].name, session.outputs[0].name
    return [-float(abs(session.run({given: draw(200 + seed).numpy()})[got] - WANTED).mean()) for seed in range(4)]


def learn(model: Any) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for seed in range(15):
        optimizer.zero_grad()
        (model(draw(seed)) - WANTED).abs().mean().backward()
        optimizer.step()


def forget(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)


def idle(model: Any) -> None:
    """Trains nothing."""


def crash(model: Any) -> None:
    forget(model)
    raise KeyboardInterrupt


def tune(model: Any, train: Any, output: Path, **arguments: Any) -> Any:
    arguments = {"evaluate": near, "max_drop": -0.2, **arguments}  # better than the float model: only training can
    return deploykit.tune(
        model, "x86-cpu", "int8", example_inputs=(draw(0),), calibration=[draw(seed) for seed in range(8)],
        train=train, allow=("train",), output=output, strict=False, profile=False, progress=False, **arguments,
    )  # fmt: skip


def test_a_training_that_helps_is_kept(tmp_path: Path) -> None:
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = tune(model, learn, tmp_path / "a")
    assert [(step.step, step.outcome) for step in plan.ladder] == [("ptq", "kept"), ("train", "kept")]
    start, trained = plan.ladder
    assert plan.met and trained.metric > start.metric + 0.2 and trained.on == "artifact"
    assert trained.drop_low <= trained.drop <= trained.drop_high
    assert plan.model is model and any(not torch.equal(before[n], value) for n, value in model.state_dict().items())
    assert plan.best.path == tmp_path / "a" and plan.recipe.ladder[-1].step == "train"


@pytest.mark.parametrize("train", [forget, crash])
def test_a_training_that_does_not_help_is_undone(train: Any, tmp_path: Path) -> None:
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if train is crash:
        with pytest.raises(KeyboardInterrupt):
            tune(model, train, tmp_path / "a")
        assert (tmp_path / "a.tune" / "state.json").is_file()
    else:
        plan = tune(model, train, tmp_path / "a")
        assert [(s.step, s.outcome) for s in plan.ladder][1] == ("train", "passed over") and plan.model is None
        assert plan.ladder[-1].step == "ptq: artifact"
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_cannot_be_trained_says_why(case: Any, tmp_path: Path) -> None:
    def reason(model: Any, train: Any, **arguments: Any) -> str:
        if model is case.captured:
            arguments |= {"example_inputs": None}
        plan = deploykit.tune(
            model, "x86-cpu", "int8", calibration=case.run if model is case.captured else [draw(0), draw(1)],
            train=train, allow=("train",), strict=False, profile=False, progress=False, output=tmp_path / "a",
            min_sqnr_db=190.0, **{"example_inputs": (draw(0),), **arguments},
        )  # fmt: skip
        skipped = plan.ladder[1]
        assert (skipped.step, skipped.outcome) == ("train", "skipped")
        return str(skipped.reason)

    assert "no train= was given" in reason(net(), None)
    assert "pass evaluate=" in reason(net(), learn)
    assert "has no parameters to train" in reason(case.captured, learn, evaluate=near)


def test_a_training_that_changes_nothing_proves_nothing(tmp_path: Path) -> None:
    """Its artifact is near to what was trained, and has the recipe of the start: the start is judged by itself."""
    plan = tune(net(), idle, tmp_path / "a", evaluate=lambda session: 1.0)
    assert [step.outcome for step in plan.ladder if step.step == "train"] == ["passed over"]
    assert plan.ladder[-1].step == "ptq: artifact"
    assert abs(plan.best.parity.sqnr_db - plan.ladder[0].sqnr_db) < 3.0
