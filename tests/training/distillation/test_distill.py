"""`deploykit.distill`: the loss module leaves no trace, the loop learns, keeps the best and repeats itself."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import deploykit


def network(width: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 3)]
    return nn.Sequential(*layers)


X = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
Y = (X[:, :3] * 2).argmax(1)
BATCHES = [(X[i : i + 16], Y[i : i + 16]) for i in range(0, 64, 16)]


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_the_loss_is_the_sum_and_leaves_both_models_as_they_were() -> None:
    student, teacher = network(8), network(16, 1)
    teacher.train()
    teacher[1].eval()
    state, keys = copy.deepcopy(teacher.state_dict()), list(student.state_dict())
    terms = deploykit.Response(temperature=4, alpha=0.7) + deploykit.Feature({"2": "2"}) + deploykit.Relation()
    loss = deploykit.distill(student, teacher, terms, example_inputs=(X[:2],))
    value = loss(*BATCHES[0])
    value.backward()
    assert value.item() == pytest.approx(sum(loss.values.values()), rel=1e-5)
    assert set(loss.values) == {"response", "feature", "relation", "task"}
    assert loss.values["task"] == pytest.approx(0.3 * F.cross_entropy(loss.outputs, BATCHES[0][1]).item(), rel=1e-5)
    assert not hooks(student) and not hooks(teacher) and list(student.state_dict()) == keys
    assert all(torch.equal(state[name], each) for name, each in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters()) and teacher.training and not teacher[1].training
    assert all(p.grad is not None for p in loss.parameters())
    mine = {id(p) for p in loss.parameters()}
    assert not mine & {id(p) for p in teacher.parameters()} and mine > {id(p) for p in student.parameters()}


def test_without_targets_there_is_no_task() -> None:
    student, teacher = network(8).eval(), network(8, 1).eval()
    loss = deploykit.distill(student, teacher)
    value = loss(X).item()
    s, t = (model(X).detach() / 4 for model in (student, teacher))
    assert value == pytest.approx(16 * float(F.kl_div(s.log_softmax(1), t.softmax(1), reduction="batchmean")), rel=1e-4)
    assert set(loss.values) == {"response"}


def test_hooks_are_gone_after_a_failure_too() -> None:
    student, teacher = network(8), network(8)
    loss = deploykit.distill(student, teacher, deploykit.Feature({"2": "2"}))
    with pytest.raises(RuntimeError):
        loss(torch.randn(2, 5))
    assert not hooks(student) and not hooks(teacher) and teacher.training


def learned(**options: Any) -> tuple[nn.Module, Any]:
    student, teacher = network(8), network(32, 1)
    # a teacher that knows the answers
    optimizer = torch.optim.Adam(teacher.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(teacher(X), Y).backward()
        optimizer.step()
    terms = deploykit.Response() + deploykit.Feature({"2": "2"})
    return student, deploykit.distill(student, teacher, terms).fit(BATCHES, lr=0.02, progress=False, **options)


def accuracy(model: nn.Module) -> float:
    return float((model(X).argmax(1) == Y).float().mean())


def test_the_loop_learns_and_repeats_itself() -> None:
    before = accuracy(network(8).eval())
    student, history = learned(epochs=15)
    assert student.training and history.steps == 60 and len(history.losses) == 15
    assert history.losses[-1]["total"] < history.losses[0]["total"]
    assert accuracy(student.eval()) > before + 0.2
    again, _ = learned(epochs=15)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), again.parameters(), strict=True))
    other, _ = learned(epochs=15, seed=1)
    assert not all(torch.equal(a, b) for a, b in zip(student.parameters(), other.parameters(), strict=True))


def test_the_best_is_kept_be_it_the_start() -> None:
    falling = iter([1.0, 0.5, 0.7])
    start = copy.deepcopy(network(8).state_dict())
    student, history = learned(epochs=2, evaluate=lambda model: next(falling))
    assert history.metrics == [1.0, 0.5, 0.7] and history.kept == 0
    assert all(torch.equal(start[name], each) for name, each in student.state_dict().items())


def test_steps_are_counted_and_other_optimizers_and_bfloat16_work() -> None:
    student, teacher = network(8), network(8, 1)
    loss = deploykit.distill(student, teacher)
    optimizer = torch.optim.SGD(loss.parameters(), 0.01)
    assert loss.fit(BATCHES, epochs=9, max_steps=6, optimizer=optimizer, amp=True, progress=False).steps == 6


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 3)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"aside": x, "logits": self.a(x + y)}


@pytest.mark.parametrize(
    "batch", [(X, X, Y), {"x": X, "y": X, "labels": Y}, (X, X)], ids=["tuple", "dict", "no targets"]
)
def test_batches_of_several_inputs(batch: Any) -> None:
    torch.manual_seed(0)
    loss = deploykit.distill(Two(), Two())
    history = loss.fit([batch], progress=False)
    assert ("task" in history.losses[0]) == (len(batch) == 3)


def test_what_cannot_be_is_refused_in_words() -> None:
    student, teacher = network(8), network(8)
    with pytest.raises(deploykit.UsageError, match="one model"):
        deploykit.distill(student, student)
    with pytest.raises(deploykit.UsageError, match="has no module 'layer9'"):
        deploykit.distill(student, teacher, deploykit.Feature({"layer9": "2"}))
    with pytest.raises(deploykit.UsageError, match="losses are terms"):
        deploykit.distill(student, teacher, "kd")  # type: ignore[arg-type]
    with pytest.raises(deploykit.UsageError, match="gave no batches"):
        deploykit.distill(student, teacher).fit([], progress=False)
    idle = nn.Sequential(network(8))
    idle.unused = nn.Linear(2, 2)
    idle.forward = idle[0].forward  # type: ignore[method-assign]
    with pytest.raises(deploykit.UsageError, match=r"unused of Sequential was not called"):
        deploykit.distill(idle, teacher, deploykit.Feature({"unused": "2"}))(X)


def test_a_loss_that_is_no_number_stops_and_takes_back() -> None:
    student, teacher = network(8), network(8, 1)
    before = copy.deepcopy(student.state_dict())
    bad = [BATCHES[0], (X[:16] * float("nan"), Y[:16])]
    with pytest.raises(deploykit.UsageError, match="the loss is nan at step 1"):
        deploykit.distill(student, teacher).fit(bad, progress=False)
    assert all(torch.equal(before[name], each) for name, each in student.state_dict().items())
