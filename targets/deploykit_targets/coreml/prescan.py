"""What coremltools cannot convert, found before it starts: its own messages name neither layer nor line."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from deploykit.contract.errors import ConversionError
from deploykit_targets.coreml.simpler import has_converter

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit_targets.coreml.lower import Exported

HINT = "write the layer with other operators, or exclude it from the exported model and run it in the app"
DTYPES = {"bool": "int32", "float64": "float32", "float32": "float32", "float16": "float16"} | dict.fromkeys(
    ("int64", "int32", "int16", "uint16", "int8", "uint8"), "int32"
)
"""Captured dtype of an input -> the one that the program takes."""


def register_lstm() -> None:
    """Let coremltools' own converter of LSTMs, written for traced models, take the overload of `torch.export`.

    In a trace an LSTM has three named results; here it has one name, and `getitem` takes them from a tuple.
    """
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY as REGISTRY

    if REGISTRY.get_func("lstm.input") is None:
        of_traces = REGISTRY.get_func("lstm")

        def lstm(context: Any, node: Any) -> None:
            names = [node.name, f"{node.name}_hidden", f"{node.name}_cell"]
            before, node.outputs = node.outputs, names
            of_traces(context, node)
            node.outputs = before
            context.add(tuple(context[name] for name in names), torch_name=node.name, override=True)

        REGISTRY.set_func_by_name(lstm, "lstm.input")


def check_outputs(captured: CapturedModel) -> None:
    """Refuse outputs that a Core ML model cannot have: an input itself, or the same tensor twice.

    Raises:
        ConversionError: names them.
    """
    (output,) = captured.graph_module.graph.find_nodes(op="output")
    seen: dict[Any, str] = {}
    for spec, node in zip(captured.outputs, output.args[0], strict=True):
        if getattr(node, "op", "") == "placeholder":
            raise ConversionError(
                f"the output {spec.name!r} is the input {node.name!r} itself, and Core ML outputs are computed",
                hint="leave it out of what forward returns",
            )
        if node in seen:
            raise ConversionError(
                f"the outputs {seen[node]!r} and {spec.name!r} are the same tensor, which has one name in Core ML",
                hint="return it once",
            )
        seen[node] = spec.name


def check(captured: CapturedModel, lowered: Exported) -> None:
    """Refuse a model that coremltools has no converter for.

    Raises:
        ConversionError: names every such op, its module and source line, or the input of a wrong dtype.
    """
    for spec in captured.inputs:
        if spec.dtype not in DTYPES:
            raise ConversionError(
                f"Core ML takes no {spec.dtype} input, which {spec.name!r} is",
                hint="take the input as float32 or int32, and convert it in forward",
            )
        if not spec.shape:
            raise ConversionError(
                f"Core ML takes no input without axes, which {spec.name!r} is",
                hint="take it as an array of shape (1,), and use its element in forward",
            )
    missing = [
        node for node in lowered.program.graph.nodes if node.op == "call_function" and not has_converter(node.target)
    ]
    if missing:
        listed = "; ".join(dict.fromkeys(described(captured, lowered, node.meta, str(node.target)) for node in missing))
        raise ConversionError(f"Core ML has no form for {listed}", hint=HINT)


def described(captured: CapturedModel, lowered: Exported, meta: Any, op: str) -> str:
    """Op, module and source line of an exported node."""
    handle = (meta or {}).get("debug_handle")
    origin = captured.origins.get(lowered.names[handle]) if handle is not None else None
    return str(origin) if origin is not None else op


def refused(captured: CapturedModel, lowered: Exported, error: Exception) -> ConversionError:
    """The error for an exception out of coremltools, with the layer it was at where the traceback knows it."""
    where = ""
    for frame in _frames(error.__traceback__):
        node = frame.get("node")
        if hasattr(node, "meta") and hasattr(node, "kind") and node.meta:
            where = f" at {described(captured, lowered, node.meta, str(node.kind))}"
    return ConversionError(f"coremltools refuses the model{where}: {type(error).__name__}: {error}", hint=HINT)


def _frames(trace: TracebackType | None) -> Any:
    while trace is not None:
        yield trace.tb_frame.f_locals
        trace = trace.tb_next
