"""The conversion itself, as a process of its own: `python -m deploykit_targets.litert.convert_child <folder>`.

litert-torch prints at C level, changes global state of PyTorch and JAX, and can crash in native code. Here it can do
all that: the parent reads a request from and writes a result to a folder, and keeps what was printed as a log.
"""

from __future__ import annotations

import json
import operator
import sys
import traceback
from pathlib import Path
from typing import Any

from deploykit_targets.litert.boundary import finish
from deploykit_targets.litert.quantize import quantize

REQUEST, PROGRAM, RESULT, ERROR = "request.json", "program.pt2", "result.json", "error.json"
RAW, OUTPUT = "raw.tflite", "model.tflite"


def main(folder: Path) -> int:
    """Convert what lies in `folder`; 0 on success, else 1 with the error written beside it.

    The slow imports come first; then a line on standard input says that the request is complete.
    """
    import litert_torch  # noqa: F401

    if not sys.stdin.readline():
        return 0  # the parent gave up
    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    try:
        result = _convert(folder, request)
    except Exception as error:  # whatever it is, the parent turns it into words
        found = {"type": type(error).__name__, "message": str(error)}
        (folder / ERROR).write_text(json.dumps(found), encoding="utf-8")
        traceback.print_exc()
        return 1
    (folder / RESULT).write_text(json.dumps(result), encoding="utf-8")
    return 0


def _convert(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    import litert_torch
    import torch

    module, examples = _load(folder, request["labels"])
    examples = _channels_last(module, examples, request)
    with torch.no_grad():
        converted = litert_torch.convert(module, tuple(examples), quant_config=_quant_config(request["static"]))
    raw = folder / RAW
    converted.export(str(raw))
    quantize(raw, request["recipe"], request["kept_float"])
    return finish(raw, folder / OUTPUT, request)


def _load(folder: Path, labels: list[str]) -> tuple[Any, list[Any]]:
    """The program as a module whose nodes are marked with the names of the captured graph."""
    import torch
    import torch.ao.quantization.fx._decomposed  # registers the quantized_decomposed operators

    program = torch.export.load(str(folder / PROGRAM))
    exported: Any = program.module(check_guards=False)
    # without the hook that checks inputs, which a change of layout contradicts
    module: Any = torch.fx.GraphModule(exported, exported.graph)
    calls = [node for node in module.graph.nodes if is_operation(node)]
    if len(calls) != len(labels):
        raise RuntimeError(f"the saved program has {len(calls)} operations, and {len(labels)} names came with it")
    for node, label in zip(calls, labels, strict=True):
        # The converter names tensors after this stack; counting reads the names back from the file.
        node.meta["nn_module_stack"] = {label: ("", label)}
    arguments, _ = program.example_inputs or ((), {})
    return module, list(arguments)


def is_operation(node: Any) -> bool:
    """Whether a node computes: saving a program adds picks of unused results, which need no name."""
    return bool(node.op == "call_function" and node.target is not operator.getitem)


def _channels_last(module: Any, examples: list[Any], request: dict[str, Any]) -> list[Any]:
    """Let the graph take (and give) images as NHWC where the file shall; the converter cancels the transpositions.

    litert-torch's own wrapper for this hides the names of the nodes.
    """
    graph, found = module.graph, list(examples)
    for index, node in enumerate([node for node in graph.nodes if node.op == "placeholder"]):
        if request["inputs"][index]["layout"] == "NHWC":
            with graph.inserting_after(node):
                permuted = _permute(graph, node, (0, 3, 1, 2))
            node.replace_all_uses_with(permuted, delete_user_cb=lambda user, own=permuted: user is not own)
            found[index] = examples[index].permute(0, 2, 3, 1).contiguous()
    end = next(iter(reversed(graph.nodes)))
    results = list(end.args[0])
    for index, tensor in enumerate(request["outputs"]):
        if tensor["layout"] == "NHWC":
            with graph.inserting_before(end):
                results[index] = _permute(graph, results[index], (0, 2, 3, 1))
    end.args = (type(end.args[0])(results),)
    module.recompile()
    return found


def _permute(graph: Any, node: Any, order: tuple[int, ...]) -> Any:
    import torch

    return graph.call_function(torch.ops.aten.permute.default, (node, list(order)))


def _quant_config(static: bool) -> Any:
    """Tell the converter that the graph holds quantize and dequantize operations; it places none itself."""
    if not static:
        return None
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    return QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(get_symmetric_quantization_config()))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
