"""What multiplies: multiply-accumulates and weights of every operator, from its semantics, in one place.

Counted is what sums products of two operands over a shared index (matrix products, convolutions, recurrent cells,
bilinear forms, distances between sets, transforms, factorisations), outer products, and samples blended with weights
that the model computes. Not counted: arithmetic element by element, and what blends or sums one operand alone (pools,
norms, resizes). An operator that is in neither table is unknown: `mac_count` says None, and never 0.

Nothing here imports torch: nodes and shapes are only looked at.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit_calibration.no_products import NO_PRODUCTS
from deploykit_calibration.op_kinds import argument, kind_of, nodes_in, shape_of, spec_of

if TYPE_CHECKING:
    from torch.fx import Node


@dataclass(frozen=True)
class Product:
    """How to count one operator.

    Attributes:
        macs: multiply-accumulates of a call at the captured sizes, of real numbers.
        weights: positions of the arguments that hold weights, where these are constants of the model.
    """

    macs: Callable[[Node], float]
    weights: tuple[int, ...] = (0, 1)


def mac_count(node: Node) -> int | None:
    """Multiply-accumulates of a node at the captured input sizes; None where the operator is not known."""
    if node.op != "call_function" or node.target is operator.getitem or not _is_tensor(node.meta.get("val")):
        return 0
    name = operator_name(node)
    if name in PRODUCTS:
        return round(PRODUCTS[name].macs(node) * _complex_factor(node))
    return 0 if name in NO_PRODUCTS else None


def weight_count(node: Node) -> int:
    """Number of elements of a node's weights: constants of two axes and more; biases are left out."""
    if node.op != "call_function":
        return 0
    product, spec = PRODUCTS.get(operator_name(node)), spec_of(node)
    positions = product.weights if product else () if spec.weight is None else (spec.weight,)
    stored = {found for at in positions for found in nodes_in(argument(node, at, "weight")) if found.op == "get_attr"}
    return sum(math.prod(shape_of(each)) for each in stored if len(shape_of(each)) > 1)


def operator_name(node: Node) -> str:
    """Name of an operator without overload: `conv2d` of ATen, `torchvision::nms` of others, in place or not."""
    target = str(node.target)
    namespace, _, rest = target.partition(".")
    if not rest:
        return getattr(node.target, "__name__", target)
    name = rest.partition(".")[0]
    if namespace != "aten":
        return f"{namespace}::{name}"
    known = name in PRODUCTS or name in NO_PRODUCTS
    return name if known or name.endswith("__") else name.removesuffix("_")


def layer_kind(node: Node) -> str:
    """The word for a node in reports: its kind, or its operator where the table of kinds has none."""
    kind = kind_of(node)
    return operator_name(node) if kind == "other" else kind


def _is_tensor(value: Any) -> bool:
    """Whether a node computes tensors; sizes and booleans multiply nothing."""
    parts = value if isinstance(value, list | tuple) else (value,)
    return any(hasattr(part, "shape") for part in parts)


def _complex_factor(node: Node) -> int:
    """Real products in one of the operands' numbers: four where both are complex, two where one is."""
    if operator_name(node) in _TRANSFORMS:
        return 1
    operands = [found for argument in node.args[:2] for found in nodes_in(argument)]
    count = sum(1 for each in operands if "complex" in str(getattr(each.meta.get("val"), "dtype", "")))
    return 1 if not count else 4 if count == len(operands) else 2


# Shapes of arguments and results.


def _shape(node: Node, position: int, name: str = "") -> tuple[int, ...]:
    return shape_of(argument(node, position, name))


def _size(node: Node, position: int) -> int:
    return math.prod(_shape(node, position))


def _result(node: Node) -> tuple[int, ...]:
    value = node.meta["val"]
    return shape_of(value[0] if isinstance(value, list | tuple) else node)


def _results(node: Node) -> int:
    return math.prod(_result(node))


def _broadcast(node: Node, *positions: int) -> int:
    """Elements of some arguments broadcast together."""
    shapes = [_shape(node, at) for at in positions]
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return math.prod(max(sizes) for sizes in zip(*padded, strict=True))


# Matrix products, convolutions, distances.


def _inner(node: Node) -> int:
    """Every result sums over the last axis of the first operand."""
    shape = _shape(node, 0)
    return _results(node) * (shape[-1] if shape else 1)


def _added(node: Node) -> int:
    """`add*(bias, left, right)`: every element of `left` meets every column of `right`."""
    right = _shape(node, 2)
    return _size(node, 1) * (right[-1] if len(right) > 1 else 1)


def _grouped(node: Node) -> int:
    return _size(node, 0) * _shape(node, 1)[-1]


def _convolution(node: Node) -> int:
    weight = math.prod(_shape(node, 1)[1:])
    return (_size(node, 0) if kind_of(node) == "conv_transpose" else _results(node)) * weight


def _transposed(node: Node) -> int:
    return _size(node, 0) * math.prod(_shape(node, 1)[1:])


def _convolution_tbc(node: Node) -> int:
    return _results(node) * math.prod(_shape(node, 1)[:2])


def _deformable(node: Node) -> int:
    """The products of a convolution, and four samples blended for every tap of every input channel."""
    batch, *_, height, width = _result(node)
    taps = math.prod(_shape(node, 1)[2:]) * height * width * batch * _shape(node, 0)[1]
    return _convolution(node) + 4 * taps


def _distances(node: Node) -> int:
    return _results(node) * _shape(node, 0)[-1]


def _einsum(node: Node) -> int:
    """Operands joined from left to right, as PyTorch does; an ellipsis counts as one index."""
    equation = str(node.args[0]).replace(" ", "")
    inputs, _, result = equation.replace("...", ".").partition("->")
    terms, sizes = inputs.split(","), dict[str, int]()
    for term, operand in zip(terms, nodes_in(node.args[1]), strict=True):
        shape = shape_of(operand)
        head, _, tail = term.partition(".")
        named = [*zip(head, shape, strict=False), *zip(tail[::-1], shape[::-1], strict=False)]
        sizes.update({index: max(size, sizes.get(index, 1)) for index, size in named})
        if "." in term:
            sizes["."] = max(sizes.get(".", 1), math.prod(shape[len(head) : len(shape) - len(tail)]))
    total, joined = 0, set[str](terms[0])
    for position, term in enumerate(terms[1:], 1):
        joined |= set(term)
        total += math.prod(sizes[index] for index in joined)
        joined &= set(result).union(*terms[position + 1 :])
    return total


def _tensordot(node: Node) -> int:
    shape = _shape(node, 0)
    summed: list[int] = argument(node, 2, "dims_self")
    return _results(node) * math.prod(shape[axis] for axis in summed)


def _chain(node: Node) -> int:
    """The cheapest order of a product of matrices, by dynamic programming (Cormen et al., 15.2)."""
    shapes = [shape_of(matrix) for matrix in nodes_in(node.args[0])]
    sizes = [shapes[0][0] if len(shapes[0]) > 1 else 1, *(shape[-1] if len(shape) > 1 else 1 for shape in shapes[1:])]
    sizes.insert(1, shapes[0][-1])
    sizes = sizes if len(shapes[-1]) > 1 else [*sizes[:-1], 1]
    cost: dict[tuple[int, int], int] = {(i, i): 0 for i in range(len(shapes))}
    for width in range(1, len(shapes)):
        for i in range(len(shapes) - width):
            j = i + width
            cost[i, j] = min(cost[i, k] + cost[k + 1, j] + sizes[i] * sizes[k + 1] * sizes[j + 1] for k in range(i, j))
    return cost[0, len(shapes) - 1]


def _trilinear(node: Node) -> int:
    """Points of the space that the three operands span once their missing axes are put in."""
    shapes = []
    for position in range(3):
        shape = list(_shape(node, position))
        for axis in sorted(argument(node, position + 3, f"expand{position + 1}")):
            shape.insert(axis, 1)
        shapes.append(shape)
    return math.prod(max(sizes) for sizes in zip(*shapes, strict=True))


def _bilinear(node: Node) -> int:
    return math.prod(_shape(node, 0)[:-1]) * _size(node, 2)


def _outer_by_broadcasting(node: Node) -> int:
    """An elementwise product is an outer one where each operand is stretched along an axis of the other.

    It is an inner one where both have its shape and a sum reads it: a scalar product, written out.
    """
    one, two = argument(node, 0, "self"), argument(node, 1, "other")
    if one is two:
        return _power_of_differences(node)
    return _stretched(node) or (_results(node) if _is_summed(node) else 0)


def _is_summed(node: Node) -> bool:
    shapes = [shape_of(each) for at in (0, 1) for each in nodes_in(argument(node, at, "other"))]
    whole = len(shapes) == 2 and shapes[0] == shapes[1] and len(shapes[0]) > 0
    return whole and any(operator_name(user) == "sum" for user in node.users)


def _stretched(node: Node) -> int:
    """Elements of a result that is larger than both operands, else 0."""
    sizes = [math.prod(shape_of(each)) for at in (0, 1) for each in nodes_in(argument(node, at, "other"))]
    return _results(node) if len(sizes) == 2 and _results(node) > max(sizes) else 0


def _power_of_differences(node: Node) -> int:
    """A power of the differences between each of one side and each of the other: distances, written out."""
    source, exponent = argument(node, 0, "self"), argument(node, 1, "exponent", 2)
    while hasattr(source, "target") and operator_name(source) in ("abs", "neg"):
        source = source.args[0]
    apart = hasattr(source, "target") and operator_name(source) in ("sub", "add")
    return _stretched(source) if apart and exponent not in (0, 0.5, 1) else 0


# Recurrent layers and attention.


def _rows_by_matrices(first: int) -> Callable[[Node], int]:
    """Every weight meets every row once: (steps x batch) rows; the matrices stand from position `first` on."""

    def count(node: Node) -> int:
        matrices = [found for at in range(first, len(node.args)) for found in nodes_in(node.args[at])]
        shapes = [shape_of(each) for each in matrices if "val" in each.meta]
        return math.prod(_shape(node, 0)[:-1]) * sum(math.prod(shape) for shape in shapes if len(shape) == 2)

    return count


def _recurrent(node: Node) -> int:
    return _rows_by_matrices(_parameters_at(node))(node)


def _parameters_at(node: Node) -> int:
    """(input, state, parameters), or (data, batch sizes, state, parameters) of packed sequences."""
    return 3 if str(node.target).endswith(".data") else 2


def _attention(node: Node) -> int:
    query, key, value = (_shape(node, at) for at in range(3))
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _whole_attention(node: Node) -> int:
    """Projections, and both products of every position with every other."""
    query, key = _shape(node, 0), _shape(node, 1) if isinstance(node.args[1], type(node)) else _shape(node, 0)
    return _rows_by_matrices(1)(node) + 2 * math.prod(query) * key[-2]


# Samples that are blended with weights computed by the model.


def _sampled(node: Node) -> int:
    """Bilinear has two taps along each axis, bicubic four; the nearest sample is only moved."""
    axes = len(_shape(node, 1)) - 2
    mode: int = argument(node, 2, "interpolation_mode", 0)
    taps = {0: 2, 2: 4}.get(mode, 0)
    return _results(node) * int(taps**axes)


def _pooled_regions(node: Node) -> int:
    """Bilinear samples of regions; as many as there must be where their number depends on the region."""
    samples = argument(node, 5, "sampling_ratio", 1)
    return _results(node) * 4 * max(int(samples), 1) ** 2


def _affine_grid(node: Node) -> int:
    return _results(node) * _shape(node, 0)[-1]


def _weighted_bag(node: Node) -> int:
    weighted = argument(node, 6, "per_sample_weights")
    return _size(node, 1) * _shape(node, 0)[-1] if weighted is not None else 0


# Fourier transforms: N / 2 log2 N butterflies of one complex product, four real ones; half of it for real signals
# (Cooley and Tukey, Math. Comp. 19, 1965).


def _transform(lengths_at: int | None = None, *, real: bool = False, whole: bool = False) -> Callable[[Node], float]:
    """Args: position of the length (None: as the axes are), whether one side is real, whether all axes by default."""

    def count(node: Node) -> float:
        given, produced = _shape(node, 0), _result(node)
        full = produced if math.prod(produced) > math.prod(given) else given
        axes = argument(node, 1 if lengths_at is None else 2, "dim", None)
        default = range(len(full)) if whole else range(-1, 0)
        axes = list(default) if axes is None else axes if isinstance(axes, list | tuple) else [axes]
        sides = [max(given[axis], produced[axis]) for axis in axes]
        return math.prod(full) * sum(2 * math.log2(max(side, 2)) for side in sides) * (0.5 if real else 1)

    return count


def _short_time(spectrum: Callable[[Node], tuple[int, ...]]) -> Callable[[Node], float]:
    """Windows times a transform of a real signal; a spectrum is (..., frequencies, frames)."""

    def count(node: Node) -> float:
        length = int(argument(node, 1, "n_fft"))
        *batch, _, frames = spectrum(node)
        return math.prod(batch) * frames * length * (1 + math.log2(length))

    return count


# Linear algebra: leading terms, half of the floating-point operations of Golub and Van Loan, "Matrix Computations",
# 4th edition (LU 3.2, Cholesky 4.2, QR 5.2, SVD 8.6, eigenvalues 7.5 and 8.3).


def _algebra(formula: Callable[[int, int, int], float], *, matrix: int = 0, right: int = 1) -> Callable[[Node], float]:
    """`formula(m, n, k)` for each m x n matrix (m >= n) of a batch and k right-hand sides."""

    def count(node: Node) -> float:
        shape = _shape(node, matrix)
        m, n = max(shape[-2:]), min(shape[-2:])
        other = argument(node, right, "B")
        sides = shape_of(other) if hasattr(other, "meta") else ()
        k = sides[-1] if len(sides) > 1 else 1
        return math.prod(shape[:-2]) * formula(m, n, k)

    return count


def _power(node: Node) -> float:
    """Repeated squaring."""
    shape, exponent = _shape(node, 0), abs(int(argument(node, 1, "n")))
    products = max(exponent.bit_length() - 1, 0) + max(exponent.bit_count() - 1, 0)
    return math.prod(shape) * shape[-1] * products


def _matrix_norm(node: Node) -> float:
    """Spectral and nuclear norms need singular values; the others sum or compare elements."""
    order = argument(node, 1, "ord", None)
    shape = _shape(node, 0)
    return _algebra(_svdvals)(node) if len(shape) > 1 and order in (2, -2, 2.0, -2.0, "nuc") else 0


def _covariance(node: Node) -> int:
    shape = _shape(node, 0)
    return math.prod(shape) * (shape[0] if len(shape) > 1 else 1)


def _lu(m: int, n: int, k: int) -> float:
    return m * n * n / 2 - n**3 / 6


def _qr(m: int, n: int, k: int) -> float:
    return m * n * n - n**3 / 3


def _svdvals(m: int, n: int, k: int) -> float:
    return 2 * m * n * n - 2 * n**3 / 3


def _svd(m: int, n: int, k: int) -> float:
    return 2 * m * m * n + 4 * m * n * n + 4.5 * n**3


def _all(product: Product, names: str) -> dict[str, Product]:
    return dict.fromkeys(names.split(), product)


_TRANSFORMS: Mapping[str, Product] = {
    **_all(Product(_transform(1), ()), "fft_fft fft_ifft"),
    **_all(Product(_transform(1, real=True), ()), "fft_rfft fft_irfft fft_hfft fft_ihfft"),
    **_all(Product(_transform(1, whole=True), ()), "fft_fftn fft_ifftn fft_fft2 fft_ifft2"),
    **_all(Product(_transform(1, real=True, whole=True), ()), "fft_rfftn fft_irfftn fft_hfftn fft_ihfftn"),
    **_all(Product(_transform(1, real=True, whole=True), ()), "fft_rfft2 fft_irfft2 fft_hfft2 fft_ihfft2"),
    **_all(Product(_transform(), ()), "_fft_c2c"),
    **_all(Product(_transform(real=True), ()), "_fft_r2c _fft_c2r"),
    "stft": Product(_short_time(lambda node: _result(node)[: 3 if len(_shape(node, 0)) > 1 else 2]), ()),
    "istft": Product(_short_time(lambda node: _shape(node, 0)), ()),
}

PRODUCTS: Mapping[str, Product] = {
    **_all(Product(_inner, (1,)), "linear mkldnn_linear _weight_int8pack_mm _dyn_quant_matmul_4bit"),
    **_all(Product(_inner, (1,)), "_weight_int4pack_mm _weight_int4pack_mm_for_cpu"),
    **_all(Product(_inner), "matmul linalg_matmul mm bmm mv dot vdot inner _int_mm _scaled_mm"),
    **_all(Product(_added, (1, 2)), "addmm addmv addbmm baddbmm _addmm_activation"),
    **_all(Product(_grouped), "_grouped_mm"),
    **_all(Product(lambda node: _broadcast(node, 0, 1)), "linalg_vecdot pairwise_distance dist"),
    **_all(Product(lambda node: 3 * _broadcast(node, 0, 1)), "cosine_similarity cosine_embedding_loss"),
    **_all(Product(lambda node: 2 * _broadcast(node, 0, 1, 2)), "triplet_margin_loss"),
    **_all(Product(lambda node: _size(node, 0) * _size(node, 1)), "outer ger kron"),
    **_all(Product(lambda node: _size(node, 1) * _size(node, 2), (1, 2)), "addr"),
    **_all(Product(_outer_by_broadcasting, ()), "mul multiply"),
    **_all(Product(_power_of_differences, ()), "pow square float_power"),
    **_all(Product(_convolution, (1,)), "conv1d conv2d conv3d convolution _convolution _convolution_mode"),
    **_all(Product(_convolution, (1,)), "convolution_overrideable mkldnn_convolution _nnpack_spatial_convolution"),
    **_all(Product(_convolution, (1,)), "thnn_conv2d _slow_conv2d_forward slow_conv3d slow_conv3d_forward"),
    **_all(Product(_convolution, (1,)), "slow_conv_dilated2d slow_conv_dilated3d _conv_depthwise2d conv_depthwise3d"),
    **_all(Product(_transposed, (1,)), "conv_transpose1d conv_transpose2d conv_transpose3d"),
    **_all(Product(_transposed, (1,)), "slow_conv_transpose2d slow_conv_transpose3d"),
    "conv_tbc": Product(_convolution_tbc, (1,)),
    "torchvision::deform_conv2d": Product(_deformable, (1,)),
    **_all(Product(_distances), "cdist _cdist_forward _euclidean_dist pdist _pdist_forward"),
    "einsum": Product(_einsum, (1,)),
    "tensordot": Product(_tensordot),
    **_all(Product(_chain, (0,)), "chain_matmul linalg_multi_dot"),
    "bilinear": Product(_bilinear, (0, 1, 2)),
    "_trilinear": Product(_trilinear, (0, 1, 2)),
    **_all(Product(_recurrent, (2, 3)), "lstm gru rnn_tanh rnn_relu"),
    **_all(Product(_rows_by_matrices(2), (2, 3)), "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"),
    "mkldnn_rnn_layer": Product(_rows_by_matrices(1), (1, 2)),
    **_all(Product(_attention, ()), "scaled_dot_product_attention _scaled_dot_product_attention_math"),
    **_all(Product(_attention, ()), "_scaled_dot_product_flash_attention_for_cpu"),
    **_all(Product(_whole_attention, (3, 5, 7)), "_native_multi_head_attention"),
    **_all(Product(_whole_attention, (3, 5, 14, 16)), "_transformer_encoder_layer_fwd"),
    **_all(Product(_sampled, ()), "grid_sampler grid_sampler_2d grid_sampler_3d _grid_sampler_2d_cpu_fallback"),
    **_all(Product(_pooled_regions, ()), "torchvision::roi_align torchvision::ps_roi_align"),
    "affine_grid_generator": Product(_affine_grid, ()),
    **_all(Product(_weighted_bag, (0,)), "embedding_bag _embedding_bag _embedding_bag_forward_only"),
    **_TRANSFORMS,
    **_all(Product(_algebra(_lu)), "det logdet slogdet linalg_det linalg_slogdet _linalg_det _linalg_slogdet"),
    **_all(Product(_algebra(_lu)), "linalg_lu linalg_lu_factor linalg_lu_factor_ex _lu_with_info"),
    **_all(Product(_algebra(lambda m, n, k: n**3)), "inverse linalg_inv linalg_inv_ex linalg_tensorinv"),
    **_all(Product(_algebra(lambda m, n, k: n**3 / 3 + n * n * k)), "linalg_solve linalg_solve_ex _linalg_solve_ex"),
    **_all(Product(_algebra(lambda m, n, k: n**3 / 3 + n * n * k)), "linalg_tensorsolve"),
    **_all(Product(_algebra(lambda m, n, k: n * n * k, matrix=1, right=0)), "cholesky_solve _cholesky_solve_helper"),
    **_all(Product(_algebra(lambda m, n, k: n * n * k, right=2)), "linalg_lu_solve linalg_ldl_solve"),
    **_all(Product(_algebra(lambda m, n, k: n * n * k, matrix=1, right=0)), "lu_solve"),
    **_all(Product(_algebra(lambda m, n, k: n * n * k / 2)), "linalg_solve_triangular"),
    **_all(Product(_algebra(lambda m, n, k: n * n * k / 2, matrix=1, right=0)), "triangular_solve"),
    **_all(Product(_algebra(lambda m, n, k: n**3 / 6)), "cholesky linalg_cholesky linalg_cholesky_ex"),
    **_all(Product(_algebra(lambda m, n, k: n**3 / 6)), "linalg_ldl_factor linalg_ldl_factor_ex"),
    **_all(Product(_algebra(lambda m, n, k: n**3 / 3)), "cholesky_inverse"),
    **_all(Product(_algebra(lambda m, n, k: 2 * _qr(m, n, k))), "qr linalg_qr"),
    **_all(Product(_algebra(_qr)), "geqrf orgqr linalg_householder_product"),
    **_all(Product(_algebra(lambda m, n, k: 2 * m * n * k, right=2)), "ormqr"),
    **_all(Product(_algebra(lambda m, n, k: _qr(m, n, k) + m * n * k)), "linalg_lstsq"),
    **_all(Product(_algebra(_svd)), "svd linalg_svd _linalg_svd pinverse linalg_pinv"),
    **_all(Product(_algebra(_svdvals)), "linalg_svdvals linalg_matrix_rank linalg_cond nuclear_norm"),
    **_all(Product(_matrix_norm), "linalg_norm linalg_matrix_norm"),
    **_all(Product(_algebra(lambda m, n, k: 4.5 * n**3)), "linalg_eigh _linalg_eigh"),
    **_all(Product(_algebra(lambda m, n, k: 2 * n**3 / 3)), "linalg_eigvalsh"),
    **_all(Product(_algebra(lambda m, n, k: 12.5 * n**3)), "linalg_eig"),
    **_all(Product(_algebra(lambda m, n, k: 5 * n**3)), "linalg_eigvals _linalg_eigvals"),
    **_all(Product(_power), "matrix_power linalg_matrix_power"),
    # a Taylor polynomial of degree 18 takes five products (Bader, Blanes, Casas 2019); squarings depend on the values
    **_all(Product(_algebra(lambda m, n, k: 5 * n**3)), "matrix_exp linalg_matrix_exp"),
    **_all(Product(_covariance), "cov corrcoef"),
}
"""Every operator that multiplies and accumulates, by name."""
