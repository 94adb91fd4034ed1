"""Products, normalisations and reductions against NumPy formulas of the op set, in float64."""

import math

import numpy as np
import pytest
import torch

F32 = {"rtol": 2e-5, "atol": 2e-6}


# --- products -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32])
@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_linear(mil, rng, leading, dtype):
    x = rng.integers(-4, 5, (*leading, 4)).astype(dtype)
    w, b = rng.integers(-4, 5, (5, 4)).astype(dtype), rng.integers(-4, 5, 5).astype(dtype)
    got = mil.evaluate("linear", lambda x: mil.mb.linear(x=x, weight=w, bias=b), x)
    np.testing.assert_array_equal(got, x @ w.T + b)
    np.testing.assert_array_equal(mil.evaluate("linear", lambda x: mil.mb.linear(x=x, weight=w), x), x @ w.T)


def test_linear_with_a_bias_of_another_dtype(mil, rng):
    x, w = rng.normal(size=(2, 3)).astype(np.float16), rng.normal(size=(4, 3)).astype(np.float32)
    got = mil.evaluate("linear", lambda x: mil.mb.linear(x=x, weight=w), x)
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, x.astype(float) @ w.T, rtol=2e-3, atol=1e-3)


def test_linear_of_integers_with_fractional_weights_truncates_the_result(mil):
    x, w = np.array([[3, 5]], np.int32), np.array([[0.5, 0.5], [-0.5, -0.4]], np.float32)
    got = mil.evaluate("linear", lambda x: mil.mb.linear(x=x, weight=w), x)
    np.testing.assert_array_equal(got, [[4, -3]])


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.parametrize("tx", [False, True])
@pytest.mark.parametrize("ty", [False, True])
def test_matmul_broadcasts_batches(mil, rng, tx, ty, dtype):
    x = rng.integers(-5, 6, (2, 1, 4, 3) if tx else (2, 1, 3, 4)).astype(dtype)
    y = rng.integers(-5, 6, (5, 2, 4) if ty else (5, 4, 2)).astype(dtype)
    got = mil.evaluate("matmul", lambda x, y: mil.mb.matmul(x=x, y=y, transpose_x=tx, transpose_y=ty), x, y)
    want = np.matmul(np.swapaxes(x, -1, -2) if tx else x, np.swapaxes(y, -1, -2) if ty else y)
    np.testing.assert_array_equal(got, want)


def test_matmul_with_a_vector(mil, rng):
    x, y = rng.normal(size=4).astype(np.float32), rng.normal(size=(4, 3)).astype(np.float32)
    np.testing.assert_allclose(mil.evaluate("matmul", lambda x, y: mil.mb.matmul(x=x, y=y), x, y), x @ y, **F32)


@pytest.mark.parametrize(
    ("equation", "left", "right"),
    [
        ("nchw,nwhu->nchu", (2, 3, 4, 5), (2, 5, 4, 6)),
        ("nchw,nwhu->nchu", (1, 3, 4, 5), (2, 5, 1, 6)),
        ("chw,whr->chr", (3, 4, 5), (5, 4, 6)),
        ("abcd,adce->abce", (2, 3, 4, 5), (2, 5, 4, 6)),
    ],
)
def test_einsum(mil, rng, equation, left, right):
    x, y = rng.normal(size=left).astype(np.float32), rng.normal(size=right).astype(np.float32)
    got = mil.evaluate("einsum", lambda x, y: mil.mb.einsum(values=(x, y), equation=equation), x, y)
    rank = len(left)
    wide_x = [max(a, b) if i in (rank - 2, rank - 4) else a for i, (a, b) in enumerate(zip(left, right, strict=True))]
    wide_y = [max(a, b) if i in (rank - 2, rank - 4) else b for i, (a, b) in enumerate(zip(left, right, strict=True))]
    want = np.einsum(equation.replace(" ", ""), np.broadcast_to(x, wide_x), np.broadcast_to(y, wide_y))
    np.testing.assert_allclose(got, want, **F32)


@pytest.mark.parametrize("mask", [None, "bool", "float"])
@pytest.mark.parametrize("heads", [(2,), (2, 3)])
def test_attention(mil, rng, mask, heads):
    q, k = rng.normal(size=(*heads, 4, 6)).astype(np.float32), rng.normal(size=(*heads, 5, 6)).astype(np.float32)
    v = rng.normal(size=(*heads, 5, 3)).astype(np.float32)
    scores = q.astype(float) @ np.swapaxes(k, -1, -2) / math.sqrt(6)
    options = {}
    if mask == "bool":
        kept = rng.random((4, 5)) > 0.3
        kept[:, 0] = True
        scores, options = np.where(kept, scores, -np.inf), {"attn_mask": kept}
    elif mask == "float":
        added = rng.normal(size=(4, 5)).astype(np.float32)
        scores, options = scores + added, {"attn_mask": added}
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    want = weights / weights.sum(-1, keepdims=True) @ v

    def build(q, k, v):
        return mil.mb.scaled_dot_product_attention(query=q, key=k, value=v, **options)

    got = mil.evaluate("scaled_dot_product_attention", build, q, k, v, opset="iOS18")
    np.testing.assert_allclose(got, want, **F32)


# --- normalisations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("spatial", [(5,), (3, 4), (2, 3, 2)])
def test_batch_norm(mil, rng, spatial, affine):
    x = rng.normal(3, 2, (2, 3, *spatial)).astype(np.float32)
    mean, var = rng.normal(size=3).astype(np.float32), rng.uniform(0.1, 3, 3).astype(np.float32)
    gamma, beta = rng.normal(size=3).astype(np.float32), rng.normal(size=3).astype(np.float32)
    options = {"gamma": gamma, "beta": beta} if affine else {}
    column = lambda v: v.astype(float).reshape(3, *[1] * len(spatial))  # noqa: E731
    want = (x - column(mean)) / np.sqrt(column(var) + 1e-3)
    want = want * column(gamma) + column(beta) if affine else want

    def build(x):
        return mil.mb.batch_norm(x=x, mean=mean, variance=var, epsilon=np.float32(1e-3), **options)

    np.testing.assert_allclose(mil.evaluate("batch_norm", build, x), want, **F32)


@pytest.mark.parametrize("spatial", [(6,), (3, 4)])
@pytest.mark.parametrize("affine", [False, True])
def test_instance_norm(mil, rng, spatial, affine):
    x = rng.normal(3, 2, (2, 3, *spatial)).astype(np.float32)
    gamma, beta = rng.normal(size=3).astype(np.float32), rng.normal(size=3).astype(np.float32)
    axes = tuple(range(2, x.ndim))
    want = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-2)
    options = {"gamma": gamma, "beta": beta} if affine else {}
    if affine:
        want = want * gamma.reshape(3, *[1] * len(spatial)) + beta.reshape(3, *[1] * len(spatial))
    got = mil.evaluate("instance_norm", lambda x: mil.mb.instance_norm(x=x, epsilon=np.float32(1e-2), **options), x)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axes", [[0, 1, 2], [-1], [2, 1], [1], [0, 2]])
def test_layer_norm(mil, rng, axes):
    x = rng.normal(3, 2, (4, 3, 5)).astype(np.float32)
    dims = tuple(sorted(axis % 3 for axis in axes))
    gamma = rng.normal(size=[x.shape[d] for d in dims]).astype(np.float32)
    beta = rng.normal(size=gamma.shape).astype(np.float32)
    wide = [x.shape[d] if d in dims else 1 for d in range(3)]
    want = (x - x.mean(dims, keepdims=True)) / np.sqrt(x.var(dims, keepdims=True) + 1e-5)
    want = want * gamma.reshape(wide) + beta.reshape(wide)
    got = mil.evaluate("layer_norm", lambda x: mil.mb.layer_norm(x=x, gamma=gamma, beta=beta, axes=axes), x)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    inferred = mil.infer(lambda x: mil.mb.layer_norm(x=x, gamma=gamma, beta=beta, axes=axes), x)
    np.testing.assert_allclose(got, inferred, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 4, 5), (2, 2, 3, 4, 5)])
def test_l2_norm_over_the_last_three_axes(mil, rng, shape):
    x = rng.normal(size=shape).astype(np.float32)
    want = x / np.sqrt((x.astype(float) ** 2).sum((-3, -2, -1), keepdims=True) + 1e-2)
    got = mil.evaluate("l2_norm", lambda x: mil.mb.l2_norm(x=x, epsilon=np.float32(1e-2)), x)
    np.testing.assert_allclose(got, want, **F32)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("spatial", [(4,), (3, 2)])
def test_local_response_norm(mil, rng, size, spatial):
    x = rng.normal(0, 3, (2, 6, *spatial)).astype(np.float32)

    def build(x):
        return mil.mb.local_response_norm(
            x=x, size=size, alpha=np.float32(0.3), beta=np.float32(0.75), k=np.float32(1.5)
        )

    want = torch.nn.LocalResponseNorm(size, alpha=0.3, beta=0.75, k=1.5)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(mil.evaluate("local_response_norm", build, x), want, **F32)


# --- reductions ---------------------------------------------------------------------------------------------------

REDUCTIONS = {
    "reduce_l1_norm": lambda x, **k: np.abs(x).sum(**k),
    "reduce_l2_norm": lambda x, **k: np.sqrt((x * x).sum(**k)),
    "reduce_log_sum": lambda x, **k: np.log(x.sum(**k)),
    "reduce_log_sum_exp": lambda x, **k: np.log(np.exp(x).sum(**k)),
    "reduce_max": lambda x, **k: x.max(**k),
    "reduce_mean": lambda x, **k: x.mean(**k),
    "reduce_min": lambda x, **k: x.min(**k),
    "reduce_prod": lambda x, **k: x.prod(**k),
    "reduce_sum": lambda x, **k: x.sum(**k),
    "reduce_sum_square": lambda x, **k: (x * x).sum(**k),
}


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("axes", [None, [0], [-1], [0, 2], [2, -2]])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reduction(mil, rng, name, axes, keep):
    x = rng.uniform(0.5, 2, (2, 3, 4)).astype(np.float32)
    options = {} if axes is None else {"axes": axes}
    got = mil.evaluate(name, lambda x: getattr(mil.mb, name)(x=x, keep_dims=keep, **options), x)
    want = REDUCTIONS[name](x.astype(float), axis=None if axes is None else tuple(axes), keepdims=keep)
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reduction_of_integers_truncates(mil, name):
    x = np.array([[1, 2, 4], [3, 2, 2]], np.int32)
    got = mil.evaluate(name, lambda x: getattr(mil.mb, name)(x=x, axes=[1]), x)
    np.testing.assert_array_equal(got, np.trunc(REDUCTIONS[name](x.astype(float), axis=1)))


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reduction_over_no_axes_keeps_every_element(mil, name):
    x = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    empty = np.zeros(0, np.int32)
    got = mil.evaluate(name, lambda x: getattr(mil.mb, name)(x=x, axes=empty, keep_dims=True), x)
    np.testing.assert_allclose(got, REDUCTIONS[name](x, axis=()), rtol=1e-6)


def test_log_sum_exp_does_not_overflow(mil):
    x = np.array([1000.0, 1000.0], np.float32)
    got = mil.evaluate("reduce_log_sum_exp", lambda x: mil.mb.reduce_log_sum_exp(x=x, axes=[0]), x)
    assert got == pytest.approx(1000 + math.log(2))


@pytest.mark.parametrize("name", ["reduce_argmax", "reduce_argmin"])
@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("keep", [False, True])
def test_argument_of_the_extreme(mil, rng, name, axis, keep):
    x = rng.permutation(24).reshape(2, 3, 4).astype(np.float32)
    got = mil.evaluate(name, lambda x: getattr(mil.mb, name)(x=x, axis=axis, keep_dims=keep), x)
    want = (np.argmax if name == "reduce_argmax" else np.argmin)(x, axis=axis, keepdims=keep)
    np.testing.assert_array_equal(got, want)


def test_argmax_as_uint16_and_first_of_ties(mil):
    x = np.array([[1, 5, 5], [2, 2, 0]], np.int32)
    got = mil.evaluate("reduce_argmax", lambda x: mil.mb.reduce_argmax(x=x, axis=1, output_dtype="uint16"), x)
    assert got.dtype == np.uint16
    np.testing.assert_array_equal(got, [1, 0])
