"""The conversion itself, as a process of its own: `python -m deploykit_targets.litert.convert_child <folder>`.

litert-torch prints at C level, changes global state of PyTorch and JAX, and can crash in native code. Here it can do
all that: the parent reads a request from and writes a result to a folder, and keeps what was printed as a log.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

from deploykit_targets.litert.boundary import finish
from deploykit_targets.litert.quantize import quantize

REQUEST, PROGRAM, RESULT, ERROR = "request.json", "program.pt2", "result.json", "error.json"
RAW, OUTPUT = "raw.tflite", "model.tflite"


def main(folder: Path) -> int:
    """Convert what lies in `folder`; 0 on success, else 1 with the error written beside it."""
    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    try:
        result = _convert(folder, request)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent turns it into words
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
    wrapped, examples = _channels_last(module, examples, request)
    with torch.no_grad():
        converted = litert_torch.convert(wrapped, tuple(examples), quant_config=_quant_config(request["static"]))
    raw = folder / RAW
    converted.export(str(raw))
    quantize(raw, request["recipe"], request["kept_float"])
    return finish(raw, folder / OUTPUT, request)


def _load(folder: Path, labels: list[str]) -> tuple[Any, list[Any]]:
    """The program as a module whose nodes are marked with the names of the captured graph."""
    import torch
    import torch.ao.quantization.fx._decomposed  # registers the quantized_decomposed operators

    program = torch.export.load(str(folder / PROGRAM))
    module: Any = program.module(check_guards=False)
    calls = [node for node in module.graph.nodes if node.op == "call_function"]
    if len(calls) != len(labels):
        raise RuntimeError(f"the saved program has {len(calls)} operations, and {len(labels)} names came with it")
    for node, label in zip(calls, labels, strict=True):
        # The converter names tensors after this stack; counting reads the names back from the file.
        node.meta["nn_module_stack"] = {label: ("", label)}
    arguments, _ = program.example_inputs or ((), {})
    return module, list(arguments)


def _channels_last(module: Any, examples: list[Any], request: dict[str, Any]) -> tuple[Any, list[Any]]:
    """Wrap the module where the file shall take (or give) images as NHWC."""
    import litert_torch

    places = {
        kind: [i for i, tensor in enumerate(request[kind]) if tensor["layout"] == "NHWC"]
        for kind in ("inputs", "outputs")
    }
    if not any(places.values()):
        return module, examples
    wrapped = litert_torch.to_channel_last_io(module, args=places["inputs"], outputs=places["outputs"])
    permuted = [x.permute(0, 2, 3, 1).contiguous() if i in places["inputs"] else x for i, x in enumerate(examples)]
    return wrapped, permuted


def _quant_config(static: bool) -> Any:
    """Tell the converter that the graph holds quantize and dequantize operations; it places none itself."""
    if not static:
        return None
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    return QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(get_symmetric_quantization_config()))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
