"""What the callbacks share: a module of a Lightning run under the scheme of a target, the same on every process.

Ranges are taken once, by the first process, and are the same everywhere; they are kept in the callback's state, so that
a run that resumes, or a checkpoint that is tested, computes with the ranges that it was trained with. Nothing is in the
model's `state_dict`. Strategies that shard parameters are refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deploykit.capture import CapturedModel
from deploykit.contract.errors import UsageError
from deploykit.pipeline.evidence import Task
from deploykit.pipeline.plan import make_request
from deploykit.pipeline.steps import calibrate
from deploykit_calibration.observe import CalibrationRun
from deploykit_calibration.table import CalibrationTable
from deploykit_training.kept_ranges import packed, unpacked
from deploykit_training.lightning.submodules import submodule
from deploykit_training.qat import begin, check_scales
from deploykit_training.scale_steps import LEARNING_RATE, ScaleSteps, mean_of_processes

if TYPE_CHECKING:
    from deploykit_training.trained import Trained

_SHARDED = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


class Placed(Callback):  # type: ignore[misc]
    """A callback that holds a module under the scheme of a target.

    Args:
        target, precision: as `deploykit.export` takes them; checked at once.
        module: dotted path of the submodule that is deployed; "" is the LightningModule itself. Name it where
            `training_step` does not call `self(...)`.
        example_inputs: the example inputs of that module; None takes its `example_input_array`, or the inputs of the
            first batch.
        calibration: data for the ranges; None takes the module's `calibration_dataloader()`, or else the first batches
            of the training data.
        batches: how many batches of the training data are enough.
        dynamic_batch: the batch may have any size.
        live_batch_norm_steps, scales: see `deploykit.qat`.
        scales_lr: the learning rate of learned scales, whose optimizer is the callback's own.
        options: the options of the toolchain; further ones (`include`, `exclude`, `calibration_method`, `algorithms`)
            by name.
    """

    def __init__(
        self,
        target: str = "x86-cpu",
        precision: str = "int8",
        *,
        module: str = "",
        example_inputs: Any = None,
        calibration: Any = None,
        batches: int = 16,
        dynamic_batch: bool = True,
        options: Any = None,
        include: Any = (),
        exclude: Any = (),
        calibration_method: str = "default",
        algorithms: Any = (),
        live_batch_norm_steps: int = 0,
        scales: Literal["fixed", "learned"] = "fixed",
        scales_lr: float = LEARNING_RATE,
    ) -> None:
        super().__init__()
        check_scales(scales)
        self.request = make_request(
            target,
            precision,
            method=calibration_method,
            include=include,
            exclude=exclude,
            options=options,
            algorithms=algorithms,
        )
        self.module, self.example_inputs, self.calibration = module, example_inputs, calibration
        self.batches, self.dynamic_batch, self.live_steps = batches, dynamic_batch, live_batch_norm_steps
        self.scales, self.scales_lr = scales, scales_lr
        self.table: CalibrationTable | None = None
        self._steps: ScaleSteps | None = None
        self._learned: dict[str, Any] = {}
        self._example: Any = None
        self._resumes = False
        self.trained: Trained | None = None

    # State: the ranges of the run.

    @property
    def state_key(self) -> str:
        """One for each target and precision, so that several of one kind do not share a state."""
        return str(self._generate_state_key(target=self.request.target, precision=str(self.request.precision)))

    def state_dict(self) -> dict[str, Any]:
        """The ranges (bytes of a calibration table), example inputs and learned scales; plain values, safe to load."""
        if self.table is None:
            return {}
        learned = self._learned if self._steps is None else self._steps.state_dict()
        return {"table": packed(self.table), "example": self._example, **({"learned": learned} if learned else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the ranges of the run that is resumed, or whose checkpoint is tested."""
        if "table" in state_dict:
            self.table, self.trained, self._steps = unpacked(state_dict["table"]), None, None
            self._learned = state_dict.get("learned", {})
            self._example, self._resumes = state_dict["example"], True

    # Outside of fit.

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Outside of fit: validate what the target computes."""
        if trainer.state.fn != "fit":
            self._attach(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Test what the target computes."""
        self._attach(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Predict what the target computes."""
        self._attach(trainer, pl_module)

    def _attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.trained is not None and self.trained.model is not self.deployed(pl_module):
            self.trained = None
        trained = self.placed(trainer, pl_module)
        if not trained.is_attached:
            trained.attach()

    # The module under the scheme.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be before anything runs."""
        del pl_module, stage
        name = type(trainer.strategy).__name__
        if name in _SHARDED:
            raise UsageError(
                f"{name} shards parameters, and training for a target reads whole ones",
                hint='train with strategy="ddp", or on one device',
            )

    def placed(self, trainer: Trainer, pl_module: LightningModule, task: Task | None = None) -> Trained:
        """The module under the scheme, with the ranges of this run; made at the first call."""
        if self.trained is None:
            self.trained = self._placed(trainer, pl_module, task)
        return self.trained

    def deployed(self, pl_module: LightningModule) -> nn.Module:
        """The module that is deployed.

        Raises:
            UsageError: there is no such submodule.
        """
        return submodule(pl_module, self.module)

    def renew(self) -> None:
        """Forget module and ranges before another fit, unless it resumes a run, whose ranges are kept."""
        self.trained = self._steps = None
        if not self._resumes:
            self.table = self._example = None
            self._learned = {}
        self._resumes = False

    def detach(self) -> None:
        """Give the module its own forward back."""
        if self.trained is not None:
            self.trained.detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the module as it was."""
        del trainer, pl_module, exception
        self.detach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module as it was."""
        del trainer, pl_module, stage
        self.detach()

    def _placed(self, trainer: Trainer, pl_module: LightningModule, task: Task | None) -> Trained:
        module = self.deployed(pl_module)
        if self._example is None:
            self._example = self.example(trainer, pl_module)
        shapes = {"dynamic_batch": self.dynamic_batch, "dynamic_shapes": None}
        observe = lambda captured: self._observed(trainer, pl_module, captured)  # noqa: E731
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            trained = begin(
                module,
                self._example,
                self.request,
                observe,
                shapes=shapes,
                task=task,
                live_steps=self.live_steps,
                learn_scales=self.scales == "learned",
                progress=False,
            )
            self._steps = self._scale_steps(trained)
        return trained

    def _scale_steps(self, trained: Trained) -> ScaleSteps | None:
        """The steps of the learned scales, from where a run that is resumed was; None where scales are fixed."""
        if trained.graph.scales is None:
            return None
        steps = ScaleSteps(trained.graph.scales.parameters, self.scales_lr, mean_of_processes)
        if self._learned:
            steps.load_state_dict(self._learned)
        return steps

    def _observed(self, trainer: Trainer, pl_module: LightningModule, captured: CapturedModel) -> CalibrationRun:
        """The ranges of this run for the module as it is now: those that are known, or what the first process finds."""
        run, found = None, None
        if self.table is None and trainer.is_global_zero:
            run = calibrate(captured, self.data(trainer, pl_module), progress=False)
            found = packed(run.table)
        if self.table is None:
            self.table = unpacked(trainer.strategy.broadcast(found))
        table = replace(self.table, model_fingerprint=captured.fingerprint)
        return CalibrationRun(table) if run is None else replace(run, table=table)

    def data(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        """What ranges are taken from."""
        if self.calibration is not None:
            return self.calibration
        own = getattr(self.deployed(pl_module), "calibration_dataloader", None)
        return own() if callable(own) else list(itertools.islice(_training_data(trainer), self.batches))

    def example(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        """Example inputs of the module that is deployed, on the CPU."""
        example, module = self.example_inputs, self.deployed(pl_module)
        if example is None:
            example = getattr(module, "example_input_array", None)
        if example is None:
            batch = next(iter(self.data(trainer, pl_module)))
            example = batch[0] if isinstance(batch, tuple | list) else batch
            if isinstance(example, Tensor):
                example = (example[:1],)
        return pytree.tree_map_only(Tensor, lambda x: x.detach().cpu(), example)


def _training_data(trainer: Trainer) -> Any:
    """The training data of a run.

    Raises:
        UsageError: there are none, as in a test without `fit`.
    """
    found = trainer.train_dataloader
    if found is None:
        try:
            trainer.fit_loop.setup_data()
            found = trainer.train_dataloader
        except Exception as error:
            raise UsageError(
                "there are no ranges, and no training data to take them from",
                hint="pass calibration=, or ckpt_path= of a run that had this callback",
            ) from error
    if found is None:
        raise UsageError("there are no ranges, and no training data to take them from", hint="pass calibration=")
    return found


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """What a logger takes: finite numbers."""
    return {name: float(value) for name, value in values.items() if value is not None and np.isfinite(value)}


def log(trainer: Trainer, values: Mapping[str, Any]) -> None:
    """Write numbers to every logger of a run."""
    for logger in trainer.loggers:
        logger.log_metrics(numbers(values), step=trainer.global_step)
        logger.save()
