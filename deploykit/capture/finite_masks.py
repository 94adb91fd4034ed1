"""Masks that a model writes itself (-inf, the smallest float, -1e9) become -30000 where they only reach a softmax.

The weights stay exactly 0, float16 does not overflow, and a quantiser's observer meets no infinity.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deploykit.capture.editor import Call, Editor
from deploykit.capture.rewrite_attention import MASKED

aten = torch.ops.aten

_PASS_ON = (
    aten.add.Tensor,
    aten.expand.default,
    aten.reshape.default,
    aten.unsqueeze.default,
    aten.permute.default,
    aten.slice.Tensor,
    aten.masked_fill.Scalar,
    aten.masked_fill.Tensor,
    aten.where.self,
)
"""Ops through which a mask may pass on its way to a softmax."""

_MASKING = {
    aten.masked_fill.Scalar: (2,),
    aten.masked_fill.Tensor: (2,),
    aten.where.self: (1, 2),
    aten.add.Tensor: (0, 1),
    aten.mul.Tensor: (0, 1),
}
"""Op -> positions of the arguments that may hold a mask's value."""


def finite_masks(editor: Editor) -> None:
    """Raise mask values below -30000 to it, in scalars and constants, where every reader leads to a softmax."""
    for node in editor.calls(*_MASKING):
        if only_reaches_softmax(node):
            for position in _MASKING[node.target]:
                node.update_arg(position, _raised(editor, node.args[position]))
    editor.sweep()


def only_reaches_softmax(node: Call) -> bool:
    """Whether every way from a value, through operators that a mask may pass, ends in a softmax."""
    queue, seen = [node], set()
    while queue:
        current = queue.pop()
        if not current.users:
            return False
        for user in current.users:
            if user.target in _PASS_ON and user not in seen:
                seen.add(user)
                queue.append(user)
            elif user.target is not aten.softmax.int and user not in seen:
                return False
    return True


def _raised(editor: Editor, argument: Any) -> Any:
    """The argument with values below -30000 raised to it; anything else as it is."""
    if isinstance(argument, float | int) and not isinstance(argument, bool):
        return max(argument, MASKED) if argument < MASKED else argument
    value = editor.value(argument)
    if value is not None and value.is_floating_point() and bool((value < MASKED).any()):
        return editor.derived(f"{argument.target}.finite", _clamped, argument)
    return argument


def _clamped(value: Tensor) -> Tensor:
    return value.clamp_min(MASKED)
