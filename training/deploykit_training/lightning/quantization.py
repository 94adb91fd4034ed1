"""`QuantizationAwareTraining`: a Lightning run trains, validates and tests what its target will compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from deploykit.contract.errors import UsageError
from deploykit.contract.session import Session
from deploykit.pipeline.evidence import Task
from deploykit_training.lightning.placed import Placed, log


class QuantizationAwareTraining(Placed):
    """Train for a target; validation and tests run the quantised graph, too.

    `state_dict`, optimisers and checkpoints are those of a run without it; ranges are in the callback's own state, so
    that `fit(ckpt_path=...)`, `validate` and `test(ckpt_path=...)` compute with the ranges of the run. Without the
    callback the same checkpoint is the float model.

    Args:
        target, precision, **placed: see `Placed`.
        evaluate: task metric of a session, higher is better: the model ends with its parameters of before where
            training lowered it.
        max_drop: how much of it may be lost for a model to need no training.

    Attributes:
        trained: what `deploykit.qat` gives, from the start of `fit` on; `trained.export(...)` writes an artifact.
    """

    def __init__(
        self,
        target: str = "x86-cpu",
        precision: str = "int8",
        *,
        evaluate: Callable[[Session], float] | None = None,
        max_drop: float = 0.01,
        **placed: Any,
    ) -> None:
        super().__init__(target, precision, **placed)
        self._task = None if evaluate is None else Task(evaluate, max_drop)
        self._calls, self._settled = 0, False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Place the scheme, and let forward run it."""
        self.renew()
        self._settled = False
        trained = self.placed(trainer, pl_module, self._task)
        trained.attach()
        trained.measure_start()
        self._calls = trained.calls

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Refuse a training step that goes around the forward that is trained; train the scales that are learned."""
        del trainer, outputs, batch
        if self._steps is not None:
            self._steps.step()
        if self.trained is not None and self.trained.calls == self._calls:
            name = f"self.{self.module}" if self.module else "self"
            children = ", ".join(repr(name) for name, _ in pl_module.named_children())
            raise UsageError(
                f"training_step did not call {name}(...), whose forward computes as the target does",
                hint=f"call it, or say QuantizationAwareTraining(module=...), one of {children}",
            )
        self._calls = -1 if batch_idx or self.trained is None else self._calls

    def finish(self, trainer: Trainer) -> None:
        """End the training, once: the better parameters are kept, and forward is the module's own again."""
        if self.trained is not None and not self._settled:
            self._settled = True
            self.trained.settle()
            log(trainer, {f"qat/metric_{name}": value for name, value in self.trained.metrics.items()})
            self.detach()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the training."""
        del pl_module
        self.finish(trainer)

    @property
    def metrics(self) -> Mapping[str, float]:
        """The figures of `evaluate`, see `deploykit_training.trained.Trained`."""
        return {} if self.trained is None else self.trained.metrics
