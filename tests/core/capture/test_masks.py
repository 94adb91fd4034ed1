"""Transformers of PyTorch itself with every form of mask: captured as written, not as eval mode's fast path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import transformer

from deploykit.capture import capture
from deploykit.contract.errors import CaptureError

X = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
MEMORY = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(1))
PADDED = torch.arange(9)[None] >= torch.tensor([[9], [5]])
ALL_PADDED = torch.arange(9)[None] >= torch.tensor([[9], [0]])
CAUSAL = nn.Transformer.generate_square_subsequent_mask(9)


class Masked(nn.Module):
    """`function(model, *inputs)` over one of PyTorch's transformer modules, with a causal mask of -inf as a buffer."""

    def __init__(self, part: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.part, self.function, self.causal = part, function, nn.Buffer(CAUSAL)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def _layer(**options: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, **options)


def _encoder(**options: Any) -> nn.Module:
    return nn.TransformerEncoder(_layer(), 2, **options)


def _decoder() -> nn.Module:
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, 32, batch_first=True), 1)


def _heads(**options: Any) -> nn.Module:
    return nn.MultiheadAttention(16, 4, batch_first=True, **options)


FORMS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Any], tuple[Tensor, ...]]] = {
    "padding": (_encoder, lambda m, x, p: m.part(x, src_key_padding_mask=p), (X, PADDED)),
    "padding of floats": (
        _encoder,
        lambda m, x, p: m.part(x, src_key_padding_mask=p),
        (X, torch.zeros(2, 9).masked_fill(PADDED, -torch.inf)),
    ),
    "a sample of padding alone": (_encoder, lambda m, x, p: m.part(x, src_key_padding_mask=p), (X, ALL_PADDED)),
    "padding without nested tensors": (
        lambda: _encoder(enable_nested_tensor=False),
        lambda m, x, p: m.part(x, src_key_padding_mask=p),
        (X, PADDED),
    ),
    "padding of one layer": (_layer, lambda m, x, p: m.part(x, src_key_padding_mask=p), (X, PADDED)),
    "mask of truth values": (_encoder, lambda m, x, mask: m.part(x, mask=mask), (X, CAUSAL.isinf())),
    "mask of floats": (_encoder, lambda m, x, mask: m.part(x, mask=mask), (X, CAUSAL)),
    "constant mask": (_encoder, lambda m, x: m.part(x, mask=m.causal), (X,)),
    "is_causal": (_encoder, lambda m, x: m.part(x, mask=m.causal, is_causal=True), (X,)),
    "mask and padding": (
        _encoder,
        lambda m, x, p: m.part(x, mask=m.causal.isinf(), src_key_padding_mask=p),
        (X, PADDED),
    ),
    "decoder": (
        _decoder,
        lambda m, x, y, p: m.part(x, y, tgt_mask=m.causal.isinf(), tgt_key_padding_mask=p, memory_key_padding_mask=p),
        (X, MEMORY, PADDED),
    ),
    "attention with its weights": (_heads, lambda m, x, p: m.part(x, x, x, key_padding_mask=p), (X, PADDED)),
    "attention without its weights": (
        _heads,
        lambda m, x, p: m.part(x, x, x, key_padding_mask=p, need_weights=False)[0],
        (X, PADDED),
    ),
    "attention with learned keys": (
        lambda: _heads(add_bias_kv=True, add_zero_attn=True),
        lambda m, x, p: m.part(x, x, x, key_padding_mask=p)[0],
        (X, PADDED),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_masks_are_captured_in_every_form(form: str) -> None:
    part, function, inputs = FORMS[form]
    model = Masked(part(), function).eval()
    captured = capture(model, example_inputs=inputs)
    assert torch.backends.mha.get_fastpath_enabled(), "PyTorch's switch is as it was"
    assert transformer._detect_is_causal_mask.__module__ == transformer.__name__, "and so is its look at masks"
    # Another mask than the example's: nothing of it was baked in.
    others = tuple(x.flip(0) if x.dtype == torch.bool else x for x in inputs)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            wanted = model(*others)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    for want, got in zip(wanted, captured.graph_module(*others), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


class Attention(nn.Module):
    """One call of scaled_dot_product_attention with a mask and a bias of positions, as T5 has them."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.bias = nn.Linear(16, 16), nn.Linear(16, 16), nn.Parameter(torch.randn(9, 9))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        wide = mask if mask.dtype == torch.bool else mask + self.bias
        return nn.functional.scaled_dot_product_attention(self.query(x), self.key(x), x, attn_mask=wide)


@pytest.mark.parametrize("hidden", [torch.finfo(torch.float32).min, -1e9, -torch.inf, False])
def test_queries_that_see_nothing_get_what_pytorch_gives_them(hidden: float) -> None:
    """Left padding of a causal decoder: the mean of all values where the mask is finite, else zeros."""
    causal_and_left_padded = torch.ones(2, 9, 9, dtype=torch.bool).tril()
    causal_and_left_padded[1, :, :4] = False
    shown = torch.zeros(2, 9, 9)
    mask = causal_and_left_padded if hidden is False else shown.masked_fill(~causal_and_left_padded, hidden)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Attention().eval()
    captured = capture(model, example_inputs=(X, mask))
    (got,) = captured.graph_module(X, mask)
    wanted = model(X, mask)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    blind = wanted[1, :4].abs().sum()
    assert (blind == 0) == (hidden is False or hidden == -torch.inf)


def test_a_nested_tensor_is_refused_with_a_way_out() -> None:
    model = Masked(
        nn.Linear(16, 4),
        lambda m, x: m.part(torch.nested.nested_tensor([x[0], x[1, :4]]).to_padded_tensor(0.0)),
    )
    with pytest.raises(CaptureError, match="feed padded tensors and a mask") as caught:
        capture(model, example_inputs=(X,))
    assert "test_masks.py" in str(caught.value)
