"""Multiply-accumulates and weights of every operator, against counts made by hand, and no operator unknown."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploykit.capture import capture
from deploykit.contract.scheme import IN_FLOAT
from deploykit_calibration import graph_view
from deploykit_calibration.graph_view import GraphView
from deploykit_calibration.no_products import NO_PRODUCTS
from deploykit_calibration.placement import float_graph
from deploykit_calibration.products import PRODUCTS, mac_count, operator_name, weight_count

R = torch.randn


class Apply(nn.Module):
    """A function of a model's parameters and inputs."""

    def __init__(self, function: Callable[..., Any], **parameters: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in parameters.items():
            setattr(self, name, nn.Parameter(value))

    def forward(self, *args: Tensor) -> Any:
        return self.function(self, *args)


def counted(model: nn.Module, *inputs: Any) -> tuple[int, int]:
    """Multiply-accumulates and weights of all layers; every operator must be known."""
    layers = float_graph(capture(model.eval(), example_inputs=inputs), IN_FLOAT).layers
    assert all(layer.counted for layer in layers), layers
    return sum(layer.macs for layer in layers), sum(layer.weights for layer in layers)


MODULES: dict[str, tuple[nn.Module, tuple[Any, ...], int, int]] = {
    "lstm_cell": (nn.LSTMCell(8, 6), (R(2, 8), (R(2, 6), R(2, 6))), 2 * 24 * 14, 24 * 14),
    "gru_cell": (nn.GRUCell(8, 6), (R(2, 8), R(2, 6)), 2 * 18 * 14, 18 * 14),
    "gru_cell_without_bias": (nn.GRUCell(8, 6, bias=False), (R(2, 8), R(2, 6)), 2 * 18 * 14, 18 * 14),
    "gru_cell_unbatched": (nn.GRUCell(8, 6), (R(8), R(6)), 18 * 14, 18 * 14),
    "rnn_cell": (nn.RNNCell(8, 6), (R(2, 8), R(2, 6)), 2 * 6 * 14, 6 * 14),
    "rnn_cell_relu": (nn.RNNCell(8, 6, nonlinearity="relu"), (R(2, 8), R(2, 6)), 2 * 6 * 14, 6 * 14),
    "rnn": (nn.RNN(8, 6, 2), (R(5, 2, 8),), 10 * 6 * (14 + 12), 6 * (14 + 12)),
    "lstm_without_bias": (nn.LSTM(8, 6, bias=False), (R(5, 2, 8),), 10 * 24 * 14, 24 * 14),
    "gru_both_ways": (nn.GRU(8, 6, bidirectional=True), (R(5, 2, 8),), 10 * 2 * 18 * 14, 2 * 18 * 14),
    # A product with the weight for each input of the other side, and one with these: what the capture makes of it.
    "bilinear": (nn.Bilinear(8, 6, 5), (R(2, 8), R(2, 6)), 2 * 5 * (48 + 6), 5 * 48),
    "conv_transpose3d": (nn.ConvTranspose3d(2, 3, 3), (R(1, 2, 4, 4, 4),), 2 * 64 * 3 * 27, 2 * 3 * 27),
    # a bag is what its offsets select times the rows: two bags of twelve indices
    "bag": (nn.EmbeddingBag(50, 16), (torch.arange(12), torch.tensor([0, 5])), 2 * 12 * 16, 50 * 16),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str) -> None:
    model, inputs, macs, weights = MODULES[name]
    assert counted(model, *inputs) == (macs, weights)


def _squared(s: Any, a: Tensor, b: Tensor) -> Tensor:
    apart = a[:, None] - b
    return apart * apart


FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...], int]] = {
    "addbmm": (lambda s, c, a, b: torch.addbmm(c, a, b), (R(3, 5), R(2, 3, 4), R(2, 4, 5)), 2 * 3 * 4 * 5),
    "baddbmm": (lambda s, c, a, b: torch.baddbmm(c, a, b), (R(2, 3, 5), R(2, 3, 4), R(2, 4, 5)), 2 * 3 * 4 * 5),
    "addmv": (lambda s, c, a, b: torch.addmv(c, a, b), (R(3), R(3, 4), R(4)), 12),
    "addr": (lambda s, c, a, b: torch.addr(c, a, b), (R(3, 4), R(3), R(4)), 12),
    "mv": (lambda s, a, b: torch.mv(a, b), (R(3, 4), R(4)), 12),
    "dot": (lambda s, a, b: torch.dot(a, b), (R(4), R(4)), 4),
    "vdot": (lambda s, a, b: torch.vdot(a, b), (R(4), R(4)), 4),
    "vecdot": (lambda s, a, b: torch.linalg.vecdot(a, b), (R(3, 4), R(3, 4)), 12),
    "outer": (lambda s, a, b: torch.outer(a, b), (R(3), R(4)), 12),
    "ger": (lambda s, a, b: torch.ger(a, b), (R(3), R(4)), 12),
    "vector_by_matrix": (lambda s, a, b: a @ b, (R(4), R(4, 5)), 20),
    "chain": (lambda s, a, b, c: torch.linalg.multi_dot([a, b, c]), (R(10, 2), R(2, 30), R(30, 3)), 180 + 60),
    "chain_of_vectors": (lambda s, a, b, c: torch.linalg.multi_dot([a, b, c]), (R(4), R(4, 5), R(5)), 20 + 4),
    "einsum": (lambda s, a, b, c: torch.einsum("ab,bc,cd->ad", a, b, c), (R(3, 4), R(4, 5), R(5, 6)), 60 + 90),
    "einsum_dots": (lambda s, a, b: torch.einsum("...ij,...jk->...ik", a, b), (R(2, 7, 3, 4), R(2, 7, 4, 5)), 14 * 60),
    "tensordot": (lambda s, a, b: torch.tensordot(a, b, dims=2), (R(2, 3, 4), R(3, 4, 5)), 2 * 12 * 5),
    # Distances are captured as differences and their norms: the powers are the products.
    "cdist": (lambda s, a, b: torch.cdist(a, b), (R(2, 3, 8), R(2, 4, 8)), 2 * 3 * 4 * 8),
    "cdist_cubed": (lambda s, a, b: torch.cdist(a, b, p=3), (R(3, 8), R(4, 8)), 3 * 4 * 8),
    "pdist": (lambda s, a: F.pdist(a), (R(4, 8),), 4 * 4 * 8),
    "cdist_of_one": (lambda s, a, b: torch.cdist(a, b, p=1), (R(3, 8), R(4, 8)), 0),
    "squared_distances": (lambda s, a, b: (a[:, None] - b).square().sum(-1), (R(3, 8), R(4, 8)), 3 * 4 * 8),
    "differences_by_themselves": (_squared, (R(3, 8), R(4, 8)), 3 * 4 * 8),
    "radial": (lambda s, a, b: torch.exp(-((a[:, None] - b) ** 2).sum(-1)), (R(3, 8), R(4, 8)), 3 * 4 * 8),
    "products_by_hand": (lambda s, a, b: (a[:, None] * b).sum(-1), (R(3, 8), R(4, 8)), 3 * 4 * 8),
    "cdist_by_products": (lambda s, a, b: torch.cdist(a, b), (R(30, 8), R(26, 8)), 30 * 26 * 8),
    "pairwise_distance": (lambda s, a, b: F.pairwise_distance(a, b), (R(3, 8), R(3, 8)), 24),
    # Captured as a scalar product and two lengths, which are norms of one operand.
    "cosine_similarity": (lambda s, a, b: F.cosine_similarity(a, b), (R(3, 8), R(3, 8)), 24),
    "scalar_products_by_hand": (lambda s, a, b: (a * b).sum(-1), (R(3, 8), R(3, 8)), 24),
    "products_that_are_read": (lambda s, a, b: (a * b).sum(-1) + (a * b).amax(-1), (R(3, 8), R(3, 8)), 24),
    "attention": (
        lambda s, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        (R(1, 2, 5, 4), R(1, 2, 5, 4), R(1, 2, 5, 4)), 2 * 2 * 25 * 4,
    ),
    "complex": (lambda s, a: (torch.complex(a, 2 * a) @ torch.complex(a, 2 * a)).abs(), (R(3, 3),), 4 * 27),
    "rfft": (lambda s, x: torch.fft.rfft(x).abs(), (R(2, 64),), 2 * 64 * 64),
    "fft": (lambda s, x: torch.fft.fft(torch.complex(x, x)).abs(), (R(2, 64),), 4 * 2 * 64 * 64),
    "irfft": (lambda s, x: torch.fft.irfft(torch.complex(x, x)), (R(2, 33),), 2 * 64 * 64),
    "rfft2": (lambda s, x: torch.fft.rfft2(x).abs(), (R(8, 16),), 8 * 16 * 16 + 4 * 9 * 8 * 8),
    "stft": (
        lambda s, x: torch.stft(x, 16, center=False, return_complex=True).abs(), (R(2, 64),), 2 * 13 * 16 * 16
    ),
    "grid_sample": (lambda s, x, g: F.grid_sample(x, g), (R(1, 2, 5, 4), R(1, 3, 3, 2)), 2 * 9 * 4),
    "grid_sample_nearest": (lambda s, x, g: F.grid_sample(x, g, mode="nearest"), (R(1, 2, 5, 4), R(1, 3, 3, 2)), 0),
    "affine_grid": (lambda s, t: F.affine_grid(t, [1, 1, 4, 5]), (R(1, 2, 3),), 4 * 5 * 2 * 3),
    "conv_of_an_input": (lambda s, x, w: F.conv2d(x, w), (R(1, 2, 6, 6), R(3, 2, 3, 3)), 3 * 16 * 18),
    "inverse": (lambda s, a: torch.linalg.inv(a), (R(2, 4, 4),), 2 * 64),
    "solve": (lambda s, a, b: torch.linalg.solve(a, b), (R(6, 6), R(6, 2)), 72 + 72),
    "determinant": (lambda s, a: torch.linalg.det(a), (R(6, 6),), 72),
    "power": (lambda s, a: torch.linalg.matrix_power(a, 5), (R(4, 4),), 3 * 64),
}  # fmt: skip
"""Operators without weights: function of module and inputs, inputs, multiply-accumulates."""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    function, inputs, macs = FUNCTIONS[name]
    assert counted(Apply(function), *inputs) == (macs, 0)


@pytest.mark.parametrize(
    "function",
    [
        lambda s, x: x * s.w,
        lambda s, x: F.silu(x) * x,
        lambda s, x: F.avg_pool2d(x, 2),
        lambda s, x: x.norm(dim=1),
        lambda s, x: x.pow(2).mean(1),
        lambda s, x: (x - x.mean(1, keepdim=True)).square().sum(1),
    ],
)
def test_arithmetic_by_element_and_reductions_of_one_operand_are_none(function: Callable[..., Any]) -> None:
    assert counted(Apply(function, w=R(1, 3, 1, 1)), R(2, 3, 4, 4)) == (0, 0)


def test_weights_are_what_the_model_stores() -> None:
    """The bias of an `add*` and the operands that are computed are none."""
    added = Apply(lambda s, x: torch.addmv(s.c, x, s.v), c=R(3), v=R(4))
    assert counted(added, R(3, 4)) == (12, 0)
    batched = Apply(lambda s, x: torch.baddbmm(s.c, x, s.w), c=R(2, 3, 5), w=R(2, 4, 5))
    assert counted(batched, R(2, 3, 4)) == (120, 40)
    stacked = Apply(lambda s, x: x @ s.w, w=R(2, 4, 5))
    assert counted(stacked, R(2, 3, 4)) == (120, 40)
    taps = Apply(lambda s, x: torch.conv_tbc(x, s.w, s.b), w=R(3, 4, 5), b=R(5))
    assert counted(taps, R(6, 2, 4)) == (4 * 2 * 5 * 12, 60)


# Names that no capture on a CPU can hold: gradients, kernels of other devices, sparse and nested tensors, quantised
# tensors of the old API, lists of tensors of optimisers, and PyTorch's own tests.
_NEVER_CAPTURED = re.compile(
    r"backward|^_foreach|sparse|csr|csc|^hspmm$|^smm$|^sspaddmm$|^_spsolve$|^_spdiags$|nested|jagged|cudnn|cufft|miopen"
    r"|mps|_triton|vulkan|nnpack_available|quantized_|fbgemm|_wrapped|^_fused_(adam|sgd|adagrad)|_amp_|^_cslt"
    r"|^_test_|^_foobar$|^_print$|_use_|philox|^_sobol|_fill_mem_eff|_compute_linear_combination|_(add|remove)_batch_dim"
    r"|_scaled_dot_product_(efficient|fused|flash_attention$)|_flash_attention|_efficient_attention|_scaled_grouped"
    r"|_scaled_mm_v2|_mixed_dtypes|_weight_int4pack_mm_with|mkldnn_reorder"
)


def test_no_operator_is_unknown() -> None:
    """What a new PyTorch adds must be put into one of the two tables before it can be counted as nothing."""
    qualified = {name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")}
    names = {name.removeprefix("aten::") for name in qualified}
    functional = {name if name.endswith("__") else name.removesuffix("_") for name in names}
    unknown = sorted(
        name
        for name in functional
        if name not in PRODUCTS and name not in NO_PRODUCTS and not _NEVER_CAPTURED.search(name)
    )
    assert not unknown
    assert not NO_PRODUCTS & PRODUCTS.keys()


def test_what_sounds_like_a_product_is_none_of_those_without() -> None:
    """A name of linear algebra, a convolution, a transform or a cell must not slip into the table of the others."""
    sounding = re.compile(
        r"mm$|mv$|dot$|conv\dd|convolution|lstm$|gru$|rnn|_cell$|^fft_i?[rh]?fft[2n]?$|^stft|linear$|cdist|attention"
    )
    allowed = {"_thnn_fused_gru_cell", "_thnn_fused_lstm_cell"}  # what is behind the products
    assert {name for name in NO_PRODUCTS if sounding.search(name)} <= allowed


def test_an_operator_of_another_library_is_unknown_and_never_nothing() -> None:
    library = torch.library.Library("deploykit_test_products", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x + x, "CompositeExplicitAutograd")
    library.impl("twice", torch.empty_like, "Meta")

    def twice(s: nn.Module, x: Tensor) -> Tensor:
        return torch.ops.deploykit_test_products.twice(x)

    captured = capture(Apply(twice), example_inputs=(R(2, 3),))
    (layer,) = float_graph(captured, IN_FLOAT).layers
    assert (layer.kind, layer.counted, layer.macs) == ("deploykit_test_products::twice", False, 0)
    (node,) = [node for node in captured.graph_module.graph.nodes if node.op == "call_function"]
    assert mac_count(node) is None and weight_count(node) == 0
    assert operator_name(node) == "deploykit_test_products::twice"


def test_a_view_counts_each_operator_once(zoo: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    captured = zoo("residual_cnn").captured
    view = GraphView(captured.graph_module.graph)
    counted: list[str] = []
    monkeypatch.setattr(graph_view, "mac_count", lambda op: counted.append(op.name) or mac_count(op))
    for _ in range(2):
        assert [view.macs(op) for op in view.ops()] == [mac_count(op) for op in view.ops()]
    assert counted == [op.name for op in view.ops()]
