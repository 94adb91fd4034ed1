"""`deploykit.qat`: train a model on the arithmetic of its target, in any training loop.

    with deploykit.qat(model, target="jetson-orin", example_inputs=(x,), calibration=loader) as trained:
        fit(trained.model)
    artifact = trained.export(output="out/model")

Inside the block the model's forward runs the graph that its target will run, rounded exactly as the simulation rounds
it, as a function of the model's own parameters. Ranges of activations stay as calibration found them or are learned,
scales of weights follow the weights, batch norms keep their statistics. Refused are models whose graph would not be
that of the export.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from deploykit.capture import CapturedModel, capture, open_model
from deploykit.capture.borrowed import as_cpu_float32
from deploykit.capture.sources import resolve
from deploykit.contract.errors import (
    CalibrationError,
    CaptureError,
    UnsupportedPrecisionError,
    UsageError,
)
from deploykit.contract.request import Request
from deploykit.contract.session import Session
from deploykit.pipeline.evidence import Task
from deploykit.pipeline.plan import make_request
from deploykit.pipeline.progress import Steps
from deploykit.pipeline.steps import calibrate, prepare
from deploykit.plugin.registry import toolchain
from deploykit_training.forward import Interface, LiveForward, plain
from deploykit_training.live import LiveGraph, own_of
from deploykit_training.same_graph import check_equal, simulation_of
from deploykit_training.trained import Start, Trained

if TYPE_CHECKING:
    from deploykit.plugin.target import Target
    from deploykit_calibration.observe import CalibrationRun


def qat(
    model: Any,
    target: str = "x86-cpu",
    precision: str = "int8",
    *,
    example_inputs: Any = None,
    calibration: Any = None,
    calibration_method: str = "default",
    dynamic_batch: bool = True,
    dynamic_shapes: Any = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    options: Any = None,
    algorithms: Sequence[str] = (),
    evaluate: Callable[[Session], float] | None = None,
    max_drop: float = 0.01,
    scales: Literal["fixed", "learned"] = "fixed",
    live_batch_norm_steps: int = 0,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> Trained:
    """Make a model train on its target's own scheme; a context manager, see the module's docstring.

    Before the first step the model computes what `deploykit.export` with the same arguments would give (its simulated
    graph, bit for bit). Dropout does nothing inside the block, and branches that only run in training mode are not
    seen: what is trained is the graph of eval mode.

    Args:
        model: nn.Module with float32 parameters. They are trained in place; nothing is added to the module's state.
        target, precision, example_inputs, calibration, calibration_method, include, exclude, options, algorithms,
            cache_dir, progress: as `deploykit.export` takes them; the precision is a static one.
        dynamic_batch: the batch may have any size while training. False where the model fixes it.
        dynamic_shapes: as `torch.export.export` takes them; instead of `dynamic_batch`.
        evaluate: task metric of a session, higher is better. Where given, the model leaves the block with its
            parameters of before if training made it worse, and a warning says when no training was needed.
        max_drop: how much lower than the float model's the metric may be for a model to need no training.
        scales: of activations: `fixed` are those of the calibration; `learned` are parameters, which your optimizer
            gets by `optimizer.add_param_group({"params": trained.scales, "weight_decay": 0.0})`.
        live_batch_norm_steps: in so many first steps (forward passes of training mode with gradients) batch norms use
            the statistics of the batch, and move theirs on; then they are frozen, as in the artifact.

    Returns:
        `Trained`: `.model` to train, `.export(...)` for the artifact.

    Raises:
        UsageError, UnknownTargetError, UnsupportedPrecisionError, MissingDependencyError: the request cannot be met.
        CaptureError: the model cannot be captured, or its batch is fixed; the hint says what to pass.
        CalibrationError: no data, or data that do not fit.
    """
    request = make_request(
        target,
        precision,
        method=calibration_method,
        include=include,
        exclude=exclude,
        options=options,
        algorithms=algorithms,
    )
    check_scales(scales)
    task = None if evaluate is None else Task(evaluate, max_drop)
    opened, example_inputs, calibration = open_model(model, example_inputs, calibration)
    module = _checked_module(opened)
    if calibration is None:
        raise CalibrationError(
            "training for a target starts from ranges, and there is no data to take them from",
            hint="pass calibration= (a DataLoader, batches, an .npz path or a CalibrationTable)",
        )
    shapes = {"dynamic_batch": dynamic_batch and dynamic_shapes is None, "dynamic_shapes": dynamic_shapes}
    observe = partial(calibrate, data=calibration, cache_dir=cache_dir, progress=progress)
    return begin(
        module,
        example_inputs,
        request,
        observe,
        shapes=shapes,
        task=task,
        live_steps=live_batch_norm_steps,
        learn_scales=scales == "learned",
        progress=progress,
    )


def begin(
    module: nn.Module,
    example_inputs: Any,
    request: Request,
    observe: Callable[[CapturedModel], CalibrationRun],
    *,
    shapes: Mapping[str, Any],
    task: Task | None = None,
    live_steps: int = 0,
    learn_scales: bool = False,
    progress: bool = True,
    plugin: Target | None = None,
) -> Trained:
    """What `qat` does behind the checks of its arguments.

    Args:
        observe: gives the ranges of a captured model; trainers give those of the run that they resume.
        shapes: `dynamic_batch` and `dynamic_shapes`.
        learn_scales: scales of activations are parameters.
        plugin: the plugin whose scheme is trained; None for the one that the request names.
    """
    steps = Steps(enabled=progress)
    with steps.step("capture"), plain(module):
        captured = _captured(module, example_inputs, **shapes)
        interface = Interface.of(resolve(as_cpu_float32(module), example_inputs), captured)
    with steps.step("calibrate", spinner=False):
        run = observe(captured)
    with steps.step("place"):
        prepared = prepare(request, captured, run, target=plugin)
        plugin = plugin or toolchain(request.toolchain)
        start = Start(module, example_inputs, request, run, prepared, task, live_steps, plugin)
        graph = _checked_graph(start, captured, learn_scales=learn_scales)
    return Trained(start, graph, interface)


def check_scales(scales: str) -> None:
    """Refuse another word than those that `qat` takes."""
    if scales not in ("fixed", "learned"):
        raise UsageError(f"scales is {scales!r}", hint='one of "fixed", "learned"')


def _checked_module(module: Any) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise UsageError(
            f"a {type(module).__name__} has no parameters to train", hint="pass the nn.Module that it was exported from"
        )
    if isinstance(module.__dict__.get("forward"), LiveForward):
        raise UsageError("the model is being trained for a target already", hint="leave the first block first")
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise UsageError(
                f"{name} is {dtype}: weights are trained in float32",
                hint="model.float(); torch.autocast (Lightning's precision='bf16-mixed') trains in half precision",
            )
    return module


def _captured(module: nn.Module, example_inputs: Any, *, dynamic_batch: bool, dynamic_shapes: Any) -> CapturedModel:
    try:
        return capture(
            module,
            example_inputs=example_inputs,
            dynamic_batch=dynamic_batch,
            dynamic_shapes=dynamic_shapes,
            trainable=True,
        )
    except (CaptureError, UsageError) as error:
        if not dynamic_batch:
            raise
        try:
            capture(module, example_inputs=example_inputs, trainable=True)
        except (CaptureError, UsageError):
            raise error from error.__cause__
        raise CaptureError(
            f"the batch of {type(module).__name__} cannot vary: {error}",
            hint="pass dynamic_batch=False, with example_inputs of the batch size that you train with, and let the"
            " DataLoader drop the last, smaller batch (drop_last=True)",
        ) from error


def _checked_graph(start: Start, captured: CapturedModel, *, learn_scales: bool) -> LiveGraph:
    """The live graph, which equals the placed one before the first step.

    Raises:
        UnsupportedPrecisionError: nothing is placed for the precision.
        UsageError: an algorithm replaced weights.
        ConversionError: it differs.
    """
    prepared, request = start.prepared, start.request
    if not request.precision.is_static or not prepared.scheme.quantizes:
        raise UnsupportedPrecisionError(
            f"{request.precision} rounds nothing that is placed on {request.target}: there is nothing to train for",
            hint='choose a static precision, such as "int8", or export it as it is',
        )
    missing = captured.derivations.keys() - prepared.captured.derivations.keys()
    stored = {str(node.target) for node in prepared.captured.graph_module.graph.nodes if node.op == "get_attr"}
    if missing & stored:
        raise UsageError(
            f"{', '.join(prepared.applied)} replaced {sorted(missing & stored)[0]}, which training would replace again",
            hint="leave out algorithms= that round or move weights: training finds its own",
        )
    if not any(layer.precision == "int8" for layer in prepared.layers):
        first = next((layer.reason for layer in prepared.layers if layer.reason), "it has no layer")
        raise UsageError(f"no layer of the model is quantised: {first}", hint="export it in float, or change include=")
    simulated = simulation_of(start.plugin, prepared)
    graph = LiveGraph(prepared, simulated, learn_scales=learn_scales)
    check_equal(prepared, simulated, graph, own_of(start.module), captured.example_inputs, "before")
    return graph
