"""`capture`: any PyTorch model -> `CapturedModel`, the one float graph that every target starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from deploykit.capture.check import difference, require_parity
from deploykit.capture.dynamic import Symbols
from deploykit.capture.editor import Editor
from deploykit.capture.failures import translated
from deploykit.capture.fingerprint import fingerprint
from deploykit.capture.functionalise import writes_through_views
from deploykit.capture.inputs import tree_of, unique_name
from deploykit.capture.model import CapturedModel
from deploykit.capture.normalise import Pass, passes
from deploykit.capture.offered import with_free_axes
from deploykit.capture.origins import origin_of
from deploykit.capture.refuse import refuse_randomness, refuse_state, refuse_value_dependent_sizes
from deploykit.capture.sources import Source, resolve
from deploykit.capture.trace import Traced, trace_module, trace_program
from deploykit.capture.transforms import without_transforms
from deploykit.capture.unlift import unlift
from deploykit.contract.errors import CaptureError, UsageError
from deploykit.contract.quiet import quiet
from deploykit.contract.tensors import TensorSpec


def capture(
    model: Any,
    *,
    example_inputs: Any = None,
    dynamic_batch: bool = False,
    dynamic_shapes: Any = None,
    trainable: bool = False,
) -> CapturedModel:
    """Capture a model as one flat, normalised float graph, and prove that it computes the same.

    Args:
        model: nn.Module, LightningModule, torch.export.ExportedProgram or `"package.module:factory"`. Never changed.
            Weights on the CPU in float32 are shared, not copied: do not train on while the capture is in use.
        example_inputs: tuple (positional), dict (by name) or one tensor; None asks the model.
        dynamic_batch: axis 0 of every input is one dynamic axis, `batch`.
        dynamic_shapes: dynamic axes as torch.export takes them, or by name, `{"x": {0: "batch", 1: "length"}}`;
            excludes `dynamic_batch`. Inputs that a Hugging Face model makes up itself (`dummy_inputs`) have a dynamic
            batch and sequence where neither is given.
        trainable: the parameters will change: what one computes is kept even where its present value makes it neutral
            (a scale of ones, say).

    Returns:
        the model in eval mode on the CPU, within 100 dB SQNR of the model's own outputs on the example inputs.

    Raises:
        UsageError: an argument is missing or contradicts another; the message says which to pass.
        CaptureError: PyTorch cannot trace the model, or a pass changed its outputs; names op, module and line.
    """
    if dynamic_batch and dynamic_shapes is not None:
        raise UsageError("dynamic_batch and dynamic_shapes exclude each other", hint="pass one of them")
    with torch.inference_mode(False):  # callers may be inside one, where nothing can be traced
        source = resolve(model, example_inputs)
        if source.dummies and not dynamic_batch and dynamic_shapes is None:
            return with_free_axes(source.kwargs, partial(_shaped, source, trainable=trainable))
        return _capture(source, dynamic_batch=dynamic_batch, dynamic_shapes=dynamic_shapes, trainable=trainable)


def _shaped(source: Source, dynamic_shapes: Any, *, trainable: bool) -> CapturedModel:
    return _capture(source, dynamic_batch=False, dynamic_shapes=dynamic_shapes, trainable=trainable)


def _capture(source: Source, *, dynamic_batch: bool, dynamic_shapes: Any, trainable: bool) -> CapturedModel:
    if isinstance(source.model, ExportedProgram):
        traced = trace_program(source, dynamic=dynamic_batch or dynamic_shapes is not None)
    else:
        traced = trace_module(source, dynamic_batch=dynamic_batch, dynamic_shapes=dynamic_shapes)
    return replace(from_traced(traced, trainable=trainable), model_name=type(source.model).__name__)


def from_traced(traced: Traced, *, expand_attention: bool = True, trainable: bool = False) -> CapturedModel:
    """Normalise a traced program and check it against the model's outputs.

    Args:
        expand_attention: whether scaled_dot_product_attention becomes matmul, softmax, matmul.
        trainable: see `capture`.
    """
    with quiet(), torch.no_grad():
        steps = passes(expand_attention=expand_attention)
        editor, module, kept = _normalised(traced, steps, trainable)
        if not _agrees(traced, module):
            exact = passes(expand_attention=expand_attention, blind_queries=True)
            editor, module, kept = _normalised(traced, exact, trainable)
            if not _agrees(traced, module):
                _blame(traced, steps, trainable)
    taken = {leaf.name for leaf, _ in traced.flat}  # an artifact has one name for one thing, input or output
    names = [unique_name(traced.output_names[index], taken) for index in kept]
    return replace(_captured(module, traced, names), derivations=editor.derivations, trainable=trainable)


def _normalised(traced: Traced, steps: Sequence[Pass], trainable: bool) -> tuple[Editor, fx.GraphModule, list[int]]:
    """The program's graph after these passes, and which of the model's outputs it gives."""
    editor, kept = _flat(traced)
    editor.trainable = trainable
    for step in steps:
        step(editor)
    return editor, editor.module(), kept


def _agrees(traced: Traced, module: fx.GraphModule) -> bool:
    return all(difference(reference, module(*inputs)) is None for inputs, reference in traced.references)


def _blame(traced: Traced, steps: Sequence[Pass], trainable: bool) -> None:
    """Raise, naming the pass behind which the outputs differ."""
    _, module, _ = _normalised(traced, steps, trainable)
    for inputs, reference in traced.references:
        require_parity(reference, module(*inputs), lambda: _flat(traced)[0], steps, inputs)


def _flat(traced: Traced) -> tuple[Editor, list[int]]:
    """The program's graph with plain constants, functional where its in-place ops are not simple."""
    refuse_state(traced.program)
    program, names = without_transforms(traced.program), [leaf.name for leaf, _ in traced.flat]
    editor, kept = unlift(program, names)
    refuse_randomness(editor.graph)
    refuse_value_dependent_sizes(editor.graph)
    if writes_through_views(editor.graph):
        with translated(program.graph_module):
            program = program.run_decompositions({})
        editor, kept = unlift(program, names)
    return editor, kept


def _captured(module: fx.GraphModule, traced: Traced, names: Sequence[str]) -> CapturedModel:
    nodes = list(module.graph.nodes)
    placeholders = [n for n in nodes if n.op == "placeholder"]
    symbols = Symbols(placeholders, traced.axes, traced.program.range_constraints)
    inputs = tuple(_spec(str(n.target), n.meta["val"], symbols, _layout(n)) for n in placeholders)
    _refuse_unknown_dtypes(names, nodes[-1].args[0])
    outputs = tuple(_spec(name, n.meta["val"], symbols) for name, n in zip(names, nodes[-1].args[0], strict=True))
    return CapturedModel(
        graph_module=module,
        inputs=inputs,
        outputs=outputs,
        example_inputs=traced.example_inputs,
        dynamic_axes=symbols.axes(placeholders),
        origins={n.name: origin_of(n) for n in nodes if n.op == "call_function"},
        fingerprint=fingerprint(module, inputs),
        input_tree=tree_of(traced.flat),
        symbol_ranges=symbols.ranges,
    )


def _refuse_unknown_dtypes(names: Sequence[str], results: Any) -> None:
    """Raise for an output of a dtype that NumPy, in which every session gives its results, does not have."""
    for name, node in zip(names, results, strict=True):
        dtype = str(node.meta["val"].dtype).removeprefix("torch.")
        if dtype == "bfloat16" or dtype.startswith("float8"):
            raise CaptureError(
                f"output {name!r} is {dtype}: sessions give NumPy arrays, which have no such type",
                hint="return it as float32 (.float()); precision= says what the model computes in",
            )


def _spec(name: str, val: Tensor, symbols: Symbols, layout: str | None = None) -> TensorSpec:
    dtype = str(val.dtype).removeprefix("torch.")
    return TensorSpec(name, tuple(symbols.size(size) for size in val.shape), dtype, layout)


def _layout(placeholder: fx.Node) -> str | None:
    """NCHW for an input that a 2-D convolution reads."""
    convolved = any(user.target is torch.ops.aten.conv2d.default for user in placeholder.users)
    return "NCHW" if convolved and placeholder.meta["val"].dim() == 4 else None
