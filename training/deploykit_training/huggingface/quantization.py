"""`QuantizationAwareTraining`: a Trainer of Hugging Face trains and evaluates what its target will compute.

Checkpoints are the model's own; the ranges lie beside them, in a file of the checkpoint's folder, and a run that
resumes computes with them. The batch may vary; sequences have the length of the example inputs, or the axes of
`dynamic_shapes`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import TrainerCallback

from deploykit.capture import CapturedModel
from deploykit.contract.errors import UsageError
from deploykit.contract.session import Session
from deploykit.pipeline.evidence import Task
from deploykit.pipeline.plan import make_request
from deploykit.pipeline.steps import calibrate
from deploykit_calibration.observe import CalibrationRun
from deploykit_calibration.table import SUFFIX, CalibrationTable
from deploykit_training.huggingface.forward import LossForward
from deploykit_training.qat import begin, check_scales
from deploykit_training.scale_steps import LEARNING_RATE, ScaleSteps, mean_of_processes

if TYPE_CHECKING:
    from deploykit_training.trained import Trained

FILE = f"deploykit{SUFFIX}"
SCALES = "deploykit_scales.pt"
_LABELS = ("labels", "label", "label_ids", "start_positions", "end_positions")


class QuantizationAwareTraining(TrainerCallback):  # type: ignore[misc]
    """Train for a target in a `transformers.Trainer`.

    Args:
        target, precision, include, exclude, options, calibration_method, algorithms: as `deploykit.export` takes them.
        example_inputs: the example inputs, by name; None takes the inputs of the first batch, without its labels.
        calibration: data for the ranges; None takes the first batches of the training data.
        batches: how many of them.
        dynamic_shapes: axes that vary, as `torch.export` takes them; None is the batch alone.
        evaluate, max_drop, scales: as in `deploykit.qat`.
        scales_lr: the learning rate of learned scales, whose optimizer is the callback's own.

    Attributes:
        trained: what `deploykit.qat` gives, from the beginning of the training on; `trained.export(...)` writes an
            artifact.
    """

    def __init__(
        self,
        target: str = "x86-cpu",
        precision: str = "int8",
        *,
        example_inputs: Mapping[str, Tensor] | None = None,
        calibration: Any = None,
        batches: int = 16,
        dynamic_shapes: Any = None,
        evaluate: Callable[[Session], float] | None = None,
        max_drop: float = 0.01,
        include: Any = (),
        exclude: Any = (),
        options: Any = None,
        calibration_method: str = "default",
        algorithms: Any = (),
        scales: Literal["fixed", "learned"] = "fixed",
        scales_lr: float = LEARNING_RATE,
    ) -> None:
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
        self.example_inputs, self.calibration, self.batches = example_inputs, calibration, batches
        self.dynamic_shapes = dynamic_shapes
        self._task = None if evaluate is None else Task(evaluate, max_drop)
        self.trained: Trained | None = None
        self.table: CalibrationTable | None = None
        self.scales, self.scales_lr = scales, scales_lr
        self._steps: ScaleSteps | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Place the scheme on the model, and let its forward run it.

        Raises:
            UsageError: parameters are sharded, or a run is resumed whose ranges are not beside its checkpoint.
        """
        del control
        if getattr(args, "fsdp", None) or getattr(args, "deepspeed", None):
            raise UsageError(
                "FSDP and DeepSpeed shard parameters, and training for a target reads whole ones",
                hint="train without them, on one device or with several processes (DistributedDataParallel)",
            )
        model, loader = kwargs["model"], kwargs["train_dataloader"]
        self.table = _resumed(args, state)
        example = dict(self.example_inputs or _inputs(next(iter(loader)), rows=2))
        shapes = {"dynamic_batch": self.dynamic_shapes is None, "dynamic_shapes": self.dynamic_shapes}
        observe = lambda captured: self._observed(captured, loader)  # noqa: E731
        with torch.random.fork_rng(devices=[]):
            example = {name: value.detach().cpu() for name, value in example.items()}
            self.trained = begin(
                model,
                example,
                self.request,
                observe,
                shapes=shapes,
                task=self._task,
                learn_scales=self.scales == "learned",
                progress=False,
            )
        if self.trained.graph.scales is not None:
            self._steps = ScaleSteps(self.trained.graph.scales.parameters, self.scales_lr, mean_of_processes)
            if state.global_step:
                self._steps.load_state_dict(torch.load(_resumed_file(args, state, SCALES), weights_only=True))
        forward = self.trained.attach(LossForward)
        assert isinstance(forward, LossForward)
        forward.autocast = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        self.trained.measure_start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Train the scales that are learned."""
        del args, state, control, kwargs
        if self._steps is not None:
            self._steps.step()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the ranges and learned scales beside the checkpoint."""
        del control, kwargs
        if self.table is not None and state.is_world_process_zero:
            self.table.save(_folder(args, state) / FILE)
            if self._steps is not None:
                torch.save(self._steps.state_dict(), _folder(args, state) / SCALES)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the better parameters, and give the model its own forward back."""
        del args, state, control, kwargs
        if self.trained is not None:
            self.trained.settle()
            self.trained.detach()

    def _observed(self, captured: CapturedModel, loader: Any) -> CalibrationRun:
        if self.table is not None:
            return CalibrationRun(replace(self.table, model_fingerprint=captured.fingerprint))
        data = self.calibration
        if data is None:
            data = [_inputs(batch) for batch in itertools.islice(loader, self.batches)]
        run = calibrate(captured, data, progress=False)
        self.table = _agreed(run.table)
        return replace(run, table=self.table)


def _agreed(table: CalibrationTable) -> CalibrationTable:
    """The ranges of the first process, on every one."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return table
    found = [table]
    torch.distributed.broadcast_object_list(found)
    return found[0]


def _inputs(batch: Mapping[str, Any], rows: int | None = None) -> dict[str, Tensor]:
    """The tensors of a batch that are no labels."""
    return {n: x[:rows] for n, x in batch.items() if isinstance(x, Tensor) and n not in _LABELS}


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _resumed(args: Any, state: Any) -> CalibrationTable | None:
    """The ranges of the run that is resumed; None where a run begins."""
    return CalibrationTable.load(_resumed_file(args, state, FILE)) if state.global_step else None


def _resumed_file(args: Any, state: Any, name: str) -> Path:
    """A file beside the checkpoint that is resumed.

    Raises:
        UsageError: it is not there.
    """
    path = _folder(args, state) / name
    if not path.is_file():
        what = "ranges are" if name == FILE else "learned scales are"
        raise UsageError(
            f"the run is resumed at step {state.global_step}, and its {what} not at {path}",
            hint="resume from a checkpoint in output_dir that was written with this callback and the same scales=",
        )
    return path
