"""A training loop for those who have none: epochs, an optimizer, a device, and the best of what it passed through."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deploykit.contract.errors import UsageError
from deploykit.judge.scores import scores_of
from deploykit_training.distillation import batches
from deploykit_training.distillation.watch import evaluating

if TYPE_CHECKING:
    from deploykit_training.distillation.distiller import Distiller


@dataclass
class History:
    """What a loop did.

    Attributes:
        losses: mean of every loss by epoch, by name; `total` is their sum.
        metrics: the metrics of `evaluate`, before the first epoch and after each; empty without it.
        kept: the number of that entry of `metrics` which the student has now; None without `evaluate`.
        steps: optimizer steps.
        seconds: wall time.
    """

    losses: list[dict[str, float]] = field(default_factory=list)
    metrics: list[float] = field(default_factory=list)
    kept: int | None = None
    steps: int = 0
    seconds: float = 0.0


def fit(
    distiller: Distiller,
    loader: Iterable[Any],
    *,
    epochs: int = 1,
    max_steps: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    lr: float = 1e-3,
    device: str | torch.device | None = None,
    amp: bool = False,
    evaluate: Callable[[nn.Module], float] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Train a student.

    Args:
        distiller: the distiller of `deploykit.distill`.
        loader: batches: tensors, `(inputs, targets)`, `(first, second, targets)`, or dicts with `labels`. Iterated once
            an epoch.
        epochs, max_steps: when to stop, whichever comes first.
        optimizer: over `distiller.parameters()`; None for AdamW with `lr` and no decay.
        device: the device, to move both models and batches to; None leaves models where they are. They stay there
            afterwards.
        amp: compute in bfloat16 where PyTorch's autocast does.
        evaluate: a metric of the student in eval mode, higher is better; measured before and after every epoch, and the
            best weights are kept, be it those from before.
        seed: the seed of dropout and of loaders that draw from PyTorch's generator; its state is given back afterwards.
        progress: show a bar on a terminal.
    Returns:
        Losses and metrics.
    Raises:
        UsageError: there are no batches, or the loss is not finite. After any error but an interrupt the student has
            the weights that it had before.
    """
    start, history = time.perf_counter(), History()
    before, student = _weights(distiller.student), distiller.student
    if device is not None:
        distiller.to(device)
        distiller.teacher.to(device)
    modes = [(module, module.training) for module in distiller.modules()]
    best = _Best(student, evaluate, history)
    try:
        with torch.random.fork_rng(), torch.enable_grad(), _bar(epochs, progress) as tick:
            torch.manual_seed(seed)
            job = _Loop(distiller, optimizer, lr, amp, max_steps, history, tick)
            for _ in range(epochs):
                job.epoch(loader)
                best.look()
                if job.done:
                    break
        best.restore()
    except Exception:
        student.load_state_dict(before)
        raise
    finally:
        for module, mode in modes:
            module.training = mode
        history.seconds = time.perf_counter() - start
    return history


@dataclass
class _Loop:
    """The steps of one `fit`."""

    distiller: Distiller
    optimizer: torch.optim.Optimizer | None
    lr: float
    amp: bool
    max_steps: int | None
    history: History
    tick: Callable[[str], None]

    @property
    def done(self) -> bool:
        return self.max_steps is not None and self.history.steps >= self.max_steps

    def epoch(self, loader: Iterable[Any]) -> None:
        left = None if self.max_steps is None else self.max_steps - self.history.steps
        self.distiller.train()
        sums: dict[str, float] = {}
        count = 0
        for batch in islice(loader, left):
            self._step(batch)
            count += 1
            for name, value in self.distiller.values.items():
                sums[name] = sums.get(name, 0.0) + value
        if not count:
            raise UsageError("the loader gave no batches", hint="pass a DataLoader or a list: a generator is used up")
        means = {name: value / count for name, value in sums.items()}
        self.history.losses.append({**means, "total": sum(means.values())})

    def _step(self, batch: Any) -> None:
        home = next((p.device for p in self.distiller.student.parameters()), None)
        inputs, targets = batches.split(batches.moved(batch, home), self.distiller.student)
        kind = "cpu" if home is None else home.type
        with torch.autocast(kind, dtype=torch.bfloat16) if self.amp else nullcontext():
            loss: Tensor = self.distiller(inputs, targets)
        if not math.isfinite(float(loss.detach())):
            raise UsageError(f"the loss is {float(loss.detach())} at step {self.history.steps}", hint="a smaller lr")
        if self.optimizer is None:  # projections have their sizes by now
            trained = [p for p in self.distiller.parameters() if p.requires_grad and p.numel()]
            self.optimizer = torch.optim.AdamW(trained, lr=self.lr, weight_decay=0.0)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.history.steps += 1
        self.tick(f"loss {float(loss.detach()):.4g}")


class _Best:
    """The weights with the best metric so far, those from before the first step among them."""

    def __init__(self, student: nn.Module, evaluate: Callable[[nn.Module], float] | None, history: History) -> None:
        self.student, self.evaluate, self.history = student, evaluate, history
        self.weights: dict[str, Any] | None = None
        self.look()

    def look(self) -> None:
        if self.evaluate is None:
            return
        with evaluating(self.student), torch.no_grad():
            metric = scores_of(self.evaluate(self.student)).value
        self.history.metrics.append(metric)
        if self.weights is None or metric > self.history.metrics[self.history.kept or 0]:
            self.weights, self.history.kept = _weights(self.student), len(self.history.metrics) - 1

    def restore(self) -> None:
        if self.weights is not None:
            self.student.load_state_dict(self.weights)


def _weights(model: nn.Module) -> dict[str, Any]:
    """A copy of the state."""
    return {name: v.detach().clone() if isinstance(v, Tensor) else v for name, v in model.state_dict().items()}


@contextmanager
def _bar(epochs: int, enabled: bool) -> Iterator[Callable[[str], None]]:
    """One line on standard error where that is a terminal."""
    if not enabled or not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("step {task.completed}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(f"distilling, {epochs} epochs", total=None)
        yield lambda text: shown.update(task, advance=1, description=text)
