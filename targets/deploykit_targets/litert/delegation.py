"""What of a .tflite file XNNPACK takes: asked of the runtime, which says it of no operator by itself.

The runtime lists the file's operators, and behind them one DELEGATE for every piece that was taken. A piece is all
that lies between its outputs and its inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploykit.contract.achieved import Delegation
from deploykit_targets.litert import flatbuffer
from deploykit_targets.litert.count import matched
from deploykit_targets.litert.session import open_interpreter

Details = Sequence[Mapping[str, Any]]


def delegation(path: Path, macs: Mapping[str, int], aliases: Mapping[str, str]) -> Delegation:
    """Open a file with XNNPACK, and see what it took.

    Args:
        path: the path of the file.
        macs: multiply-accumulates by layer.
        aliases: other names that the file may have for a layer -> the layer.
    """
    model = flatbuffer.read(path)
    details = open_interpreter(str(path), 1, "xnnpack")._get_ops_details()
    operators = [op for op in details if op["op_name"] != "DELEGATE"]
    taken = taken_by_delegates(details)
    left = Counter(str(op["op_name"]) for op in operators if op["index"] not in taken)
    return Delegation(
        name="XNNPACK",
        operators=len(operators),
        delegated=len(taken),
        macs_fraction=_macs_fraction(model, macs, aliases, taken),
        partitions=sum(op["op_name"] == "DELEGATE" for op in details),
        left=dict(sorted(left.items(), key=lambda item: (-item[1], item[0]))),
    )


def taken_by_delegates(details: Details) -> set[int]:
    """Indices of the operators that delegates compute.

    Args:
        details: what the interpreter tells: `index`, `op_name`, `inputs` and `outputs` (indices of tensors) of every
            operator.
    """
    writers = {int(t): op for op in details if op["op_name"] != "DELEGATE" for t in op["outputs"]}
    found: set[int] = set()
    for piece in details:
        if piece["op_name"] != "DELEGATE":
            continue
        begins, waiting = {int(t) for t in piece["inputs"]}, [int(t) for t in piece["outputs"]]
        while waiting:
            writer = writers.get(waiting.pop())
            if writer is None or writer["index"] in found:
                continue
            found.add(writer["index"])
            waiting += [int(t) for t in writer["inputs"] if int(t) not in begins]
    return found


def _macs_fraction(model: Any, macs: Mapping[str, int], aliases: Mapping[str, str], taken: set[int]) -> float:
    """Share of the layers' multiply-accumulates in operators that were taken; a layer counts when all its own are."""
    index = {op.outputs[0].name: i for i, op in enumerate(flatbuffer.operators(model)) if op.outputs}
    found = matched(model, {*macs, *aliases})
    layers = {aliases[name]: ops for name, ops in found.items() if aliases.get(name) in macs}
    layers.update({name: ops for name, ops in found.items() if name in macs})
    inside = sum(macs[name] for name, ops in layers.items() if all(index[op.outputs[0].name] in taken for op in ops))
    total = sum(macs[name] for name in layers)
    return inside / total if total else 1.0
