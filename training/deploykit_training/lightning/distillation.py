"""`Distillation`: a Lightning run learns from a teacher, too, whatever its `training_step` does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from deploykit.contract.errors import UsageError
from deploykit_training.distillation.batches import Arguments
from deploykit_training.distillation.distiller import Distiller, distill
from deploykit_training.distillation.terms import Term
from deploykit_training.distillation.watch import watched
from deploykit_training.lightning.submodules import submodule


class Distillation(Callback):  # type: ignore[misc]
    """Add the losses of distillation to what `training_step` returns, which is then the task's loss.

    The teacher is given the very arguments that the student was called with. Projections of `Feature` are trained by an
    AdamW of the callback's own, averaged over processes, and are in the callback's state; module, optimizers and
    checkpoints are those of a run without it.

    Args:
        teacher: run in eval mode without gradients.
        terms: see `deploykit.distill`; None for `Response()`.
        module: dotted path of the student inside the LightningModule; "" is the module itself. Name it where
            `training_step` does not call `self(...)`.
        lr: the learning rate of projections.

    Attributes:
        distiller: the loss module, from the start of `fit` on; `distiller.values` are the last batch's losses.
    """

    def __init__(self, teacher: Any, terms: Term | None = None, *, module: str = "", lr: float = 1e-3) -> None:
        super().__init__()
        self.teacher, self.terms, self.module, self.lr = teacher, terms, module, lr
        self.distiller: Distiller | None = None
        self._state: dict[str, Any] = {}
        self._optimizer: torch.optim.Optimizer | None = None
        self._had_step: Any = None

    @property
    def state_key(self) -> str:
        """One for each student."""
        return str(self._generate_state_key(module=self.module))

    def state_dict(self) -> dict[str, Any]:
        """The projections."""
        return self._state if self.distiller is None else dict(self.distiller.terms.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the projections of the run that is resumed."""
        self._state = state_dict

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wrap `training_step` for the time of `fit`."""
        del trainer
        student = self._student(pl_module)
        self.distiller = distill(student, self.teacher, self.terms, dry_run=False)
        self.distiller.teacher.to(pl_module.device)
        if self._state:
            self.distiller.terms.load_state_dict(self._state)
        self.distiller.terms.to(pl_module.device)
        self._optimizer = None
        step = pl_module.training_step
        self._had_step = pl_module.__dict__.get("training_step")
        pl_module.training_step = lambda *args, **kwargs: self._step(pl_module, student, step, args, kwargs)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Train the projections."""
        del pl_module, outputs, batch, batch_idx
        assert self.distiller is not None
        trained = [p for p in self.distiller.terms.parameters() if p.grad is not None]
        if not trained:
            return
        if self._optimizer is None:
            self._optimizer = torch.optim.AdamW(trained, lr=self.lr, weight_decay=0.0)
        for parameter in trained:
            parameter.grad = trainer.strategy.reduce(parameter.grad, reduce_op="mean")
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module its own step back."""
        del trainer
        self._unwrap(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the module its own step back."""
        del trainer, exception
        self._unwrap(pl_module)

    def _unwrap(self, pl_module: LightningModule) -> None:
        if self.distiller is None:
            return
        self._state = dict(self.distiller.terms.state_dict())
        self.distiller = None
        if self._had_step is None:
            pl_module.__dict__.pop("training_step", None)
        else:
            pl_module.training_step = self._had_step

    def _step(self, pl_module: LightningModule, student: nn.Module, step: Any, args: Any, kwargs: Any) -> Any:
        distiller = self.distiller
        assert distiller is not None
        with watched(student, distiller.terms.student_modules) as features, _called(student) as last:
            result = step(*args, **kwargs)
        task = result.get("loss") if isinstance(result, dict) else result
        if task is None:  # Lightning skips the batch
            return result
        if not last:
            children = ", ".join(repr(name) for name, _ in pl_module.named_children())
            raise UsageError(
                f"training_step did not call {f'self.{self.module}' if self.module else 'self'}(...)",
                hint=f"call it, or say Distillation(module=...), one of {children}",
            )
        loss: Tensor = distiller.of_run(last["result"], features, last["arguments"], task=task)
        for name, value in distiller.values.items():
            pl_module.log(f"distillation/{name}", value)
        return {**result, "loss": loss} if isinstance(result, dict) else loss

    def _student(self, pl_module: LightningModule) -> nn.Module:
        return submodule(pl_module, self.module)


@contextmanager
def _called(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Arguments and result of the model's last call inside the block; empty where there was none."""
    found: dict[str, Any] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        found.update(arguments=Arguments(args, kwargs), result=result)

    handle = model.register_forward_hook(keep, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()
