"""einsum of two tensors -> permute, matmul, permute. Other einsums are left to what PyTorch runs for them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from deploykit.capture.editor import Call, Editor, is_static, shape_of

aten = torch.ops.aten


@dataclass(frozen=True)
class _Roles:
    """The indices of a product by what becomes of them; each a string of letters."""

    batch: str
    left: str
    right: str
    summed: str


def rewrite_einsum(editor: Editor) -> None:
    """Rewrite the einsums that are one batched matrix product (static sizes)."""
    for node in editor.calls(aten.einsum.default):
        equation, operands = node.args[0].replace(" ", ""), node.args[1]
        roles = _roles_of(equation)
        if roles is not None and len(operands) == 2 and all(is_static(shape_of(x)) for x in operands):
            _rewrite(editor, node, equation, roles)


def _roles_of(equation: str) -> _Roles | None:
    """Sort the indices of `ab,bc->ac`; None for an equation that is no plain product of two tensors."""
    inputs, arrow, output = equation.partition("->")
    one, comma, two = inputs.partition(",")
    plain = all(len(set(part)) == len(part) and part.isalpha() for part in (one, two, output))
    if not (arrow and comma and plain) or set(output) - set(one + two):
        return None
    roles = _Roles(
        batch="".join(i for i in one if i in two and i in output),
        left="".join(i for i in one if i not in two and i in output),
        right="".join(i for i in two if i not in one and i in output),
        summed="".join(i for i in one if i in two and i not in output),
    )
    complete = set(one + two) == set(roles.batch + roles.left + roles.right + roles.summed)
    return roles if complete and roles.summed else None


def _rewrite(editor: Editor, node: Call, equation: str, roles: _Roles) -> None:
    inputs, _, output = equation.partition("->")
    one, _, two = inputs.partition(",")
    left, right = node.args[1]
    sizes = dict(zip(one + two, (*shape_of(left), *shape_of(right)), strict=True))
    left = _arranged(editor, node, left, one, (roles.batch, roles.left, roles.summed), sizes)
    right = _arranged(editor, node, right, two, (roles.batch, roles.summed, roles.right), sizes)
    product = editor.call(aten.matmul.default, left, right, before=node)
    have = roles.batch + roles.left + roles.right
    product = _reshaped(editor, node, product, [sizes[i] for i in have])
    editor.swap(node, _permuted(editor, node, product, have, output))


def _arranged(
    editor: Editor, node: Call, x: Call, have: str, groups: tuple[str, str, str], sizes: dict[str, int]
) -> Call:
    """An operand as (batch..., rows, columns), its last two groups of indices flattened to one axis each."""
    batch, rows, columns = groups
    x = _permuted(editor, node, x, have, batch + rows + columns)
    flat = [math.prod(sizes[i] for i in group) for group in (rows, columns)]
    return _reshaped(editor, node, x, [*(sizes[i] for i in batch), *flat])


def _permuted(editor: Editor, node: Call, x: Call, have: str, want: str) -> Call:
    if have == want:
        return x
    return editor.call(aten.permute.default, x, [have.index(i) for i in want], before=node)


def _reshaped(editor: Editor, node: Call, x: Call, sizes: list[int]) -> Call:
    if list(shape_of(x)) == sizes:
        return x
    return editor.call(aten.reshape.default, x, sizes, before=node)
