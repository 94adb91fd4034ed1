"""`deploykit.distill`: a loss over a student and its teacher, and a loop for those who have none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.capture.sources import load_model, resolve
from deploykit.contract.errors import UsageError
from deploykit_training.distillation import batches, loop
from deploykit_training.distillation.terms import Response, Seen, Term, as_term
from deploykit_training.distillation.watch import evaluating, logits_of, require_all, watched

TaskLoss = Callable[[Any, Any], Tensor]


class Distiller(nn.Module):
    """A loss module: `loss = distiller(inputs, targets)`, then `loss.backward()`.

    Its parameters are the student's and those of projections; the teacher is no part of it. Nothing is left on either
    model between calls.

    Attributes:
        student: trained in place.
        terms: the losses.
        values: the values of the last batch, weighted, by name; `task` where there were targets.
        outputs: the outputs of the student for the last batch, as it gave them.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, terms: Term, task_loss: TaskLoss) -> None:
        super().__init__()
        self.student, self.terms = student, terms
        self._teacher = (teacher,)  # a tuple: no submodule, so that train(), parameters() and state_dict() pass it by
        self._task_loss = task_loss
        self.values: dict[str, float] = {}
        self.outputs: Any = None

    @property
    def teacher(self) -> nn.Module:
        """Run in eval mode without gradients, and left in the mode that it was in."""
        return self._teacher[0]

    def forward(self, inputs: Any, targets: Any = None) -> Tensor:
        """The loss of a batch.

        Args:
            inputs: one tensor, a tuple (positional) or a dict (by name); both models are given the same.
            targets: the targets of the task's loss; None for distillation alone.
        Raises:
            UsageError: a module does not exist or was not called, or shapes do not fit.
        """
        with watched(self.student, self.terms.student_modules) as features:
            self.outputs = batches.call(self.student, inputs)
        return self.of_run(self.outputs, features, inputs, targets)

    def of_run(
        self,
        outputs: Any,
        features: dict[str, Tensor],
        inputs: Any,
        targets: Any = None,
        *,
        task: Tensor | None = None,
    ) -> Tensor:
        """The loss of a run of the student that somebody else watched; see `watched`.

        Args:
            outputs: the outputs of the student.
            features: the features of its modules, by path.
            inputs: the inputs that the teacher is given.
            targets: the targets of the task's loss.
            task: the task's loss, where it is known already.
        """
        require_all(self.student, self.terms.student_modules, features)
        student = Seen(logits_of(outputs, self.student), features)
        teacher = self._teach(inputs)
        parts = [(name, part.weight * part(student, teacher), part) for name, part in self.terms.parts()]
        shares = [p.alpha for _, _, p in parts if isinstance(p, Response)]
        if task is None and targets is not None:
            task = self._task_loss(logits_of(outputs, self.student), targets)
        losses = {n: (p.alpha if isinstance(p, Response) and task is not None else 1.0) * v for n, v, p in parts}
        if task is not None:
            losses["task"] = (1.0 - shares[0] if shares else 1.0) * task
        self.values = {name: float(value.detach()) for name, value in losses.items()}
        return torch.stack(list(losses.values())).sum()

    def fit(self, loader: Iterable[Any], **options: Any) -> loop.History:
        """Train the student on batches; see `deploykit_training.distillation.loop.fit` for the options."""
        return loop.fit(self, loader, **options)

    def _teach(self, inputs: Any) -> Seen:
        with (
            torch.no_grad(),
            evaluating(self.teacher) as teacher,
            watched(teacher, self.terms.teacher_modules) as found,
        ):
            result = batches.call(teacher, batches.moved(inputs, _device(teacher)))
            require_all(teacher, self.terms.teacher_modules, found)
        home = _device(self.student)
        features = {path: batches.moved(value, home) for path, value in found.items()}
        return Seen(batches.moved(logits_of(result, teacher), home), features)


def distill(
    student: Any,
    teacher: Any,
    terms: Term | None = None,
    *,
    example_inputs: Any = None,
    task_loss: TaskLoss = F.cross_entropy,
    dry_run: bool = True,
) -> Distiller:
    """Let a student learn from a teacher.

    Args:
        student: nn.Module or LightningModule, trained in place.
        teacher: a module of the same inputs; run in eval mode without gradients, never changed.
        terms: `Response(temperature=4, alpha=0.7)`, `Feature({"layer2": "layer3"})`, `Relation()`, and sums of them;
            None for `Response()`.
        example_inputs: for a dry run that creates projections of `Feature` and checks that modules and shapes fit; None
            asks the student, and else leaves that to the first batch (an optimizer may be made before).
        task_loss: the loss of the student's logits and the targets, a scalar.
        dry_run: False leaves the dry run out even where inputs are known.
    Returns:
        The loss module, with `fit` for those who have no loop.
    Raises:
        UsageError: no models, no losses, or a module that does not exist.
    """
    models = [load_model(each)[0] for each in (student, teacher)]
    for model, role in zip(models, ("student", "teacher"), strict=True):
        if not isinstance(model, nn.Module):
            raise UsageError(f"the {role} is a {type(model).__name__}", hint="pass an nn.Module")
    learner, master = models
    assert isinstance(learner, nn.Module) and isinstance(master, nn.Module)
    if learner is master:
        raise UsageError("student and teacher are one model", hint="teacher=copy.deepcopy(model) before it changes")
    distiller = Distiller(learner, master, Response() if terms is None else as_term(terms), task_loss)
    for model, paths in ((learner, distiller.terms.student_modules), (master, distiller.terms.teacher_modules)):
        with watched(model, paths):
            pass
    if dry_run:
        _dry_run(distiller, example_inputs)
    return distiller


def _dry_run(distiller: Distiller, example_inputs: Any) -> None:
    try:
        source = resolve(distiller.student, example_inputs)
    except UsageError:
        if example_inputs is not None:
            raise
        return
    inputs = source.kwargs or source.args
    with torch.no_grad(), evaluating(distiller.student):
        distiller(batches.moved(inputs, _device(distiller.student)))
    distiller.values, distiller.outputs = {}, None


def _device(model: nn.Module) -> torch.device | None:
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), None)
