"""Matrix products with a constant weight become `linear`, so that per-channel quantisation sees one form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from deploykit.capture.editor import Call, Editor, is_static, rank_of, shape_of
from deploykit.capture.rewrite_views import same_size

aten = torch.ops.aten


def constant_matmul_to_linear(editor: Editor) -> None:
    """matmul with a constant 2-D weight -> linear; a constant added behind it -> its bias."""
    transposed: dict[str, Call] = {}
    for node in editor.calls(aten.matmul.default):
        source, weight = node.args
        if editor.value(weight) is not None and rank_of(weight) == 2 and rank_of(source) >= 1:
            turned = _transposed(editor, weight, transposed)
            editor.retarget(node, aten.linear.default, source, turned)
    for node in editor.calls(aten.linear.default):
        _absorb_bias(editor, node)
        _drop_flattening(editor, node)
    editor.sweep()


def _transposed(editor: Editor, weight: Call, done: dict[str, Call]) -> Call:
    name = str(weight.target)
    if name not in done:
        done[name] = editor.derived(f"{name}.transposed", _turned, weight, parameter=True)
    return done[name]


def _turned(weight: Tensor) -> Tensor:
    return weight.t().contiguous()


def _flat(bias: Tensor) -> Tensor:
    return bias.reshape(-1).clone()


def _absorb_bias(editor: Editor, linear: Call) -> None:
    """linear without a bias, then + a constant vector: the vector becomes the bias."""
    if (len(linear.args) > 2 and linear.args[2] is not None) or len(linear.users) != 1:
        return
    user = next(iter(linear.users))
    if user.target is not aten.add.Tensor or user.kwargs.get("alpha", 1) != 1:
        return
    other: Any = user.args[1] if user.args[0] is linear else user.args[0]
    value = editor.value(other)
    features = shape_of(linear)[-1]
    if value is None or value.numel() != features or value.shape[-1:] != (features,) or value.dim() > rank_of(linear):
        return
    bias = other
    if value.dim() > 1:
        bias = editor.derived(f"{other.target}.flat", _flat, other)
    linear.args = (*linear.args[:2], bias)
    editor.swap(user, linear)


def _drop_flattening(editor: Editor, linear: Call) -> None:
    """reshape to 2-D, linear, reshape back -> linear on the last axis alone."""
    before = linear.args[0]
    if not (isinstance(before, fx.Node) and before.target is aten.reshape.default and len(linear.users) == 1):
        return
    after, source = next(iter(linear.users)), before.args[0]
    if after.target is not aten.reshape.default or not isinstance(source, fx.Node) or rank_of(source) < 2:
        return
    wanted = (*shape_of(source)[:-1], shape_of(linear)[-1])
    have = shape_of(after)
    same = len(have) == len(wanted) and all(map(same_size, have, wanted))
    if same and same_size(shape_of(source)[-1], shape_of(before)[-1]) and is_static(shape_of(before)[-1:]):
        linear.replace_input_with(before, source)
        linear.meta["val"] = after.meta["val"]
        editor.swap(after, linear)
