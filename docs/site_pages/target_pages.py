"""A page a toolchain: its own words, its devices, and what becomes of each kind of operator, from its schemes."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from site_pages.rooms import ROOT, TARGETS

_MEANS = """
A kind of operator without a row stays float. **yes**: computed in the precision. *follows*: stays in integers where its
inputs are. *joins*: as soon as one input is. *weights*: stored narrow, computed in float. *at run time*: its inputs are
rounded when it runs. *float*: with the reason that a report gives.
"""
_WORDS = {"int8": "**yes**", "follow": "*follows*", "join": "*joins*", "residual": "*skip connection*"}
_WORDS |= {"run time": "*at run time*", "weight": "*weights*", "float": "*float*"}


def pages() -> dict[str, str]:
    """One page for each of our toolchains."""
    from deploykit.plugin.registry import toolchains

    ours = {n: t for n, t in toolchains().items() if type(t).__module__.startswith("deploykit_targets")}
    return {f"targets/{name}.md": _page(name, target) for name, target in ours.items()}


def _page(name: str, target: Any) -> str:
    folder = ROOT / TARGETS / name.replace("-", "_")
    parts = [(folder / "README.md").read_text(encoding="utf-8"), "## Devices\n", _devices(target)]
    table = _operators(target)
    if table:
        parts += ["## Kinds of operators\n", _MEANS, table]
    known = _overloads(name)
    if known:
        listed = " ".join(f"`{one.removeprefix('aten.')}`" for one in known)
        parts += [f"## Operators that are lowered\n\n{len(known)} overloads of `aten`:\n\n{listed}\n"]
    return "\n".join(parts)


def _devices(target: Any) -> str:
    rows = ["| device | what it is | precisions | figures from |", "|---|---|---|---|"]
    for device in target.capabilities().devices.values():
        have = [str(p) for p in target.capabilities().precisions if p in device.precisions]
        rows.append(f"| `{device.name}` | {device.summary} | {', '.join(have)} | {device.source or '-'} |")
    return "\n".join(rows).replace("_", "\\_") + "\n"


def _operators(target: Any) -> str:
    """Rows of kinds, columns of the precisions that place something."""
    schemes = {str(p): scheme for p in target.capabilities().precisions if (scheme := _scheme(target, p)) is not None}
    schemes = {name: scheme for name, scheme in schemes.items() if scheme.rules}
    kinds = sorted({kind for scheme in schemes.values() for kind in scheme.rules})
    if not kinds:
        return ""
    rows = [f"| kind | {' | '.join(schemes)} |", f"|---|{'---|' * len(schemes)}"]
    rows += [f"| `{kind}` | {' | '.join(_cell(s, kind) for s in schemes.values())} |" for kind in kinds]
    return "\n".join(rows) + "\n"


def _cell(scheme: Any, kind: str) -> str:
    if kind not in scheme.rules:
        return "*float*"
    rule = scheme.rules[kind]
    word = _WORDS.get(str(rule.inputs), str(rule.inputs))
    return f"{word}: {rule.reason}" if rule.reason else word


def _scheme(target: Any, precision: Any) -> Any:
    """The scheme of a small CNN on the target's first device that has the precision; None where it has none."""
    from deploykit.contract.errors import DeploykitError
    from deploykit.pipeline import request

    for device in target.capabilities().devices.values():
        if precision in device.precisions:
            try:
                asked = request(f"{device.name}:{target.name}", str(precision))
                return target.scheme(asked, _small_model())
            except ModuleNotFoundError:  # TVM's kernels, which its scheme asks, need TVM
                from deploykit_targets.tvm.scheme import TVM

                return TVM if precision == "int8" else None
            except DeploykitError:
                continue
    return None


def _small_model() -> Any:
    import torch

    from deploykit.capture import capture

    layers = (torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 10))
    return capture(torch.nn.Sequential(*layers), example_inputs=(torch.randn(1, 3, 8, 8),))


def _overloads(name: str) -> tuple[str, ...]:
    """The operators in a lowering's table; of TVM's, whose modules need TVM, as its source registers them."""
    if name in ("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx", "migraphx"):
        from deploykit_targets._onnx.ops import TABLE

        return TABLE.known()
    return tuple(sorted(_registered(ROOT / TARGETS / "tvm" / "ops"))) if name == "tvm" else ()


def _registered(folder: Path) -> set[str]:
    found: set[str] = set()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                calls = [each for each in node.decorator_list if isinstance(each, ast.Call)]
                words = [a.value for call in calls for a in call.args if isinstance(a, ast.Constant)]
                found |= {w if w.startswith("aten.") else f"aten.{w}" for w in words if isinstance(w, str) and "." in w}
    return found
