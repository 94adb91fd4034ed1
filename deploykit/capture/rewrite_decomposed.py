"""Programs that were decomposed before they came here: core ATen forms back to the ops that targets know.

convolution -> conv1d/2d/3d and their transposes, native_layer_norm -> layer_norm, _softmax -> softmax, pools with
indices -> pools, fused CPU attention -> scaled_dot_product_attention. A form whose other results are read stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from deploykit.capture.editor import Call, Editor, rank_of

aten = torch.ops.aten

_FORWARD = {3: aten.conv1d.default, 4: aten.conv2d.default, 5: aten.conv3d.default}
_TRANSPOSED = {3: aten.conv_transpose1d.default, 4: aten.conv_transpose2d.input, 5: aten.conv_transpose3d.input}


def recompose(editor: Editor) -> None:
    """Rewrite every core form that has an equal high-level op."""
    for node in editor.calls(*_RULES):
        _RULES[node.target](editor, node)
    editor.sweep()


def _convolution(editor: Editor, node: Call) -> None:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = node.args
    if transposed:
        arguments = (x, weight, bias, stride, padding, output_padding, groups, dilation)
        editor.retarget(node, _TRANSPOSED[rank_of(node)], *arguments)
    else:
        editor.retarget(node, _FORWARD[rank_of(node)], x, weight, bias, stride, padding, dilation, groups)


def _softmax(editor: Editor, node: Call) -> None:
    if not node.args[2]:
        editor.retarget(node, aten.softmax.int, *node.args[:2])


def _log_softmax(editor: Editor, node: Call) -> None:
    if not node.args[2]:
        editor.retarget(node, aten.log_softmax.int, *node.args[:2])


def _layer_norm(editor: Editor, node: Call) -> None:
    _first_result(editor, node, aten.layer_norm.default, *node.args)


def _max_pool(editor: Editor, node: Call) -> None:
    _first_result(editor, node, aten.max_pool2d.default, *node.args)


def _attention(editor: Editor, node: Call) -> None:
    query, key, value, *rest = node.args
    causal = bool(rest[1]) if len(rest) > 1 else False
    options = {"scale": node.kwargs["scale"]} if node.kwargs.get("scale") is not None else {}
    arguments = (query, key, value, node.kwargs.get("attn_mask"), 0.0, causal)
    _first_result(editor, node, aten.scaled_dot_product_attention.default, *arguments, **options)


def _adaptive_pool(editor: Editor, node: Call) -> None:
    node.target = aten.adaptive_avg_pool2d.default


def _first_result(editor: Editor, node: Call, target: Callable[..., object], *args: object, **kwargs: object) -> None:
    """Replace a call by one that gives only its first result, where nothing else is read."""
    readers = [user for user in node.users if user.users]
    if all(user.args[1] == 0 for user in readers):
        new = editor.call(target, *args, before=node, **kwargs)
        for reader in readers:
            editor.swap(reader, new)


_RULES: dict[Callable[..., Any], Callable[[Editor, Call], None]] = {
    aten.convolution.default: _convolution,
    aten._softmax.default: _softmax,
    aten._log_softmax.default: _log_softmax,
    aten.native_layer_norm.default: _layer_norm,
    aten.max_pool2d_with_indices.default: _max_pool,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
    aten._adaptive_avg_pool2d.default: _adaptive_pool,
}
