"""The conversions, in a process of its own: `python -m deploykit_targets.litert.convert_child <folder>`.

litert-torch prints at C level, changes global state of PyTorch and JAX, and can crash in native code. Here it can do
all that. The process serves one request after the other, because its imports cost seconds: CALLs of the session
protocol. All that is printed goes to standard error, which is the parent's log file. It ends when its parent does, or
when nothing was asked for a while.
"""

from __future__ import annotations

import gc
import os
import select
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from deploykit.places import frames
from deploykit.places.frames import Frame
from deploykit_targets.litert import program
from deploykit_targets.litert.boundary import finish
from deploykit_targets.litert.float_files import FloatFiles
from deploykit_targets.litert.quantize import quantize, round_at_run_time

PROGRAM, OUTPUT, LOG = "program.pt2", "model.tflite", "log"
_RAW = "raw.tflite"
IDLE_SECONDS = 300.0
_LOOK_SECONDS = 2.0


def main(folder: Path) -> int:
    """Serve requests until there are no more; `folder` is removed at the end.

    The slow imports come first: the parent has other work meanwhile.
    """
    channel = frames.Channel()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle: it ends this process
    import litert_torch  # noqa: F401

    gc.collect()
    gc.freeze()  # what the imports left is never garbage: not looking at it makes conversions a fifth faster
    floats = FloatFiles(folder)
    while _is_asked() and (request := channel.receive()) is not None and request.kind == frames.CALL:
        channel.send(_answer(request.facts, floats, folder / LOG))
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def _is_asked() -> bool:
    """Whether there is a request; not where the parent is gone, or has nothing to convert any more."""
    parent, began = os.getppid(), time.monotonic()
    while not select.select([0], [], [], _LOOK_SECONDS)[0]:
        if os.getppid() != parent or time.monotonic() - began > IDLE_SECONDS:
            return False
    return True


def _answer(request: dict[str, Any], floats: FloatFiles, log: Path) -> Frame:
    """What the file takes and gives; or an error, which the parent turns into words, whatever it is."""
    try:
        found = Frame(frames.ANSWER, _convert(request, floats, log))
    except Exception as error:
        traceback.print_exc()
        found = frames.failure(str(error) or type(error).__name__)
    sys.stdout.flush()
    sys.stderr.flush()
    return found


def _convert(request: dict[str, Any], floats: FloatFiles, log: Path) -> dict[str, Any]:
    folder = Path(request["folder"])
    raw = folder / _RAW
    key = request["float_key"]
    if key is None:
        _lower(folder, raw, request)
    elif not floats.take(key, raw):
        _lower(folder, raw, request)
        sys.stdout.flush()
        sys.stderr.flush()
        log.write_bytes(os.pread(2, os.fstat(2).st_size, 0))
        floats.keep(key, raw, log)
    round_at_run_time(raw, request["dynamic"])
    quantize(raw, request["precision"], request["kept_float"], request["ranges"])
    return finish(raw, folder / OUTPUT, request)


def _lower(folder: Path, raw: Path, request: dict[str, Any]) -> None:
    import litert_torch
    import torch

    module, examples = program.load(folder / PROGRAM)
    examples = _channels_last(module, examples, request)
    with torch.no_grad():
        converted = litert_torch.convert(module, tuple(examples), quant_config=_quant_config(request["static"]))
    converted.export(str(raw))


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
