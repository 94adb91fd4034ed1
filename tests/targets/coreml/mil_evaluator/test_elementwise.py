"""Elementwise ops against NumPy, written from the op set's formulas; coremltools' own constant inference as a second
opinion. float32 tolerance 2e-6 relative covers the two libraries' transcendental functions; float16 results must be
the reference rounded once, give or take one unit in the last place where the float32 result sits on a tie."""

import math

import numpy as np
import pytest

erf = np.vectorize(math.erf, otypes=[np.float64])
F32 = {"rtol": 3e-6, "atol": 1e-6}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


REAL = np.array([[-7.3, -2.5, -1.0, -0.5, -1e-3, 0.0], [1e-3, 0.5, 1.0, 1.5, 2.5, 6.6]])
UNIT = np.linspace(-0.99, 0.99, 12).reshape(3, 4)
POSITIVE = np.array([1e-3, 0.1, 1.0, 2.0, 30.0, 900.0])

UNARY = {
    "abs": (np.abs, REAL),
    "acos": (np.arccos, UNIT),
    "asin": (np.arcsin, UNIT),
    "atan": (np.arctan, REAL),
    "atanh": (np.arctanh, UNIT),
    "ceil": (np.ceil, REAL),
    "cos": (np.cos, REAL),
    "cosh": (np.cosh, REAL),
    "erf": (erf, REAL),
    "exp": (np.exp, REAL),
    "exp2": (np.exp2, REAL),
    "floor": (np.floor, REAL),
    "round": (np.round, np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49, 3.51])),
    "sign": (np.sign, REAL),
    "sin": (np.sin, REAL),
    "sinh": (np.sinh, REAL),
    "sqrt": (np.sqrt, POSITIVE),
    "square": (np.square, REAL),
    "tan": (np.tan, UNIT),
    "tanh": (np.tanh, REAL),
    "relu": (lambda x: np.maximum(x, 0), REAL),
    "relu6": (lambda x: np.clip(x, 0, 6), REAL),
    "sigmoid": (sigmoid, REAL),
    "silu": (lambda x: x * sigmoid(x), REAL),
    "softplus": (softplus, REAL),
    "softsign": (lambda x: x / (1 + np.abs(x)), REAL),
}


def close(got, want, dtype):
    if dtype == np.float32:
        np.testing.assert_allclose(got, want, **F32)
        return
    with np.errstate(over="ignore"):
        half = np.asarray(want).astype(np.float16)
    finite = np.isfinite(half)
    np.testing.assert_array_equal(got[~finite], half[~finite])
    assert np.all(np.abs(got[finite].astype(np.float64) - half[finite]) <= np.spacing(np.abs(half[finite])))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("name", UNARY)
def test_unary(mil, name, dtype):
    reference, domain = UNARY[name]
    x = domain.astype(dtype)
    got = mil.evaluate(name, lambda x: getattr(mil.mb, name)(x=x), x)
    close(got, reference(x.astype(np.float64)), dtype)
    if dtype == np.float32 and name != "silu":  # silu has no constant inference
        inferred = mil.infer(lambda x: getattr(mil.mb, name)(x=x), x)
        np.testing.assert_allclose(got, inferred, **F32)


@pytest.mark.parametrize("name", ["abs", "sign", "square", "exp2"])
def test_unary_of_integers(mil, name):
    x = np.array([0, 1, 3, 7] if name == "exp2" else [-7, 0, 3], dtype=np.int32)
    got = mil.evaluate(name, lambda x: getattr(mil.mb, name)(x=x), x)
    np.testing.assert_array_equal(got, {"abs": np.abs, "sign": np.sign, "square": np.square, "exp2": np.exp2}[name](x))


def test_a_scalar_stays_a_scalar(mil):
    got = mil.evaluate("exp", lambda x: mil.mb.exp(x=mil.mb.squeeze(x=x)), np.array([0.5], np.float32))
    assert got.shape == () and got == pytest.approx(math.exp(0.5))


WITH_PARAMETERS = {
    "clip": ({"alpha": -0.75, "beta": 1.25}, lambda x, alpha, beta: np.minimum(np.maximum(x, alpha), beta)),
    "clamped_relu": (
        {"alpha": 0.3, "beta": 2.0},
        lambda x, alpha, beta: np.where(x >= 0, np.minimum(beta, x), np.minimum(beta, alpha * x)),
    ),
    "elu": ({"alpha": 1.3}, lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(x))),
    "inverse": ({"epsilon": 0.01}, lambda x, epsilon: 1 / (x + epsilon)),
    "leaky_relu": ({"alpha": 0.2}, lambda x, alpha: np.where(x >= 0, x, alpha * x)),
    "linear_activation": ({"alpha": 1.7, "beta": -0.3}, lambda x, alpha, beta: alpha * x + beta),
    "scaled_tanh": ({"alpha": 1.7, "beta": 0.6}, lambda x, alpha, beta: alpha * np.tanh(beta * x)),
    "sigmoid_hard": ({"alpha": 0.2, "beta": 0.5}, lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1)),
    "threshold": ({"alpha": 0.5}, lambda x, alpha: np.where(x < alpha, alpha, x)),
    "thresholded_relu": ({"alpha": 1.0}, lambda x, alpha: np.where(x >= alpha, x, 0)),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_activations_with_parameters(mil, name, dtype):
    parameters, reference = WITH_PARAMETERS[name]
    typed = {key: dtype(value) for key, value in parameters.items()}
    x = REAL.astype(dtype)
    got = mil.evaluate(name, lambda x: getattr(mil.mb, name)(x=x, **typed), x)
    close(got, reference(x.astype(np.float64), **{key: float(value) for key, value in typed.items()}), dtype)


@pytest.mark.parametrize("name", ["log", "rsqrt"])
@pytest.mark.parametrize("epsilon", [None, 0.25])
def test_epsilon_is_added_first(mil, name, epsilon):
    options = {} if epsilon is None else {"epsilon": np.float32(epsilon)}
    default = {"log": 1e-45, "rsqrt": 1e-12}[name]
    x = np.array([0.0, 1e-6, 0.5, 40.0], np.float32) if epsilon else np.array([1e-6, 0.5, 40.0], np.float32)
    got = mil.evaluate(name, lambda x: getattr(mil.mb, name)(x=x, **options), x)
    shifted = x.astype(np.float64) + (epsilon or default)
    np.testing.assert_allclose(got, np.log(shifted) if name == "log" else 1 / np.sqrt(shifted), **F32)


def test_log_of_zero_is_kept_finite_by_the_smallest_float(mil):
    got = mil.evaluate("log", lambda x: mil.mb.log(x=x), np.zeros(1, np.float32))
    np.testing.assert_allclose(got, [math.log(np.float64(np.float32(1e-45)))], rtol=1e-6)


@pytest.mark.parametrize("mode", ["EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"])
def test_gelu(mil, mode):
    reference = {
        "EXACT": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
        "TANH_APPROXIMATION": gelu_tanh,
        "SIGMOID_APPROXIMATION": lambda x: x * sigmoid(1.702 * x),
    }[mode]
    x = REAL.astype(np.float32)
    got = mil.evaluate("gelu", lambda x: mil.mb.gelu(x=x, mode=mode), x)
    np.testing.assert_allclose(got, reference(x.astype(np.float64)), rtol=3e-6, atol=2e-6)


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_softmax(mil, axis, rng):
    x = rng.normal(0, 4, (2, 3, 4)).astype(np.float32)
    e = np.exp(x - x.max(axis, keepdims=True))
    got = mil.evaluate("softmax", lambda x: mil.mb.softmax(x=x, axis=axis), x)
    np.testing.assert_allclose(got, e / e.sum(axis, keepdims=True), **F32)


def test_prelu_per_channel(mil, rng):
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    alpha = np.array([0.1, -0.5, 2.0], np.float32)
    got = mil.evaluate("prelu", lambda x: mil.mb.prelu(x=x, alpha=alpha), x)
    np.testing.assert_allclose(got, np.where(x > 0, x, alpha[:, None, None] * x), **F32)


def test_softplus_parametric_per_channel(mil, rng):
    x = rng.normal(0, 20, size=(2, 3, 4)).astype(np.float32)
    alpha, beta = np.array([0.5, 1.0, -2.0], np.float32), np.array([1.0, 0.3, 2.0], np.float32)
    got = mil.evaluate("softplus_parametric", lambda x: mil.mb.softplus_parametric(x=x, alpha=alpha, beta=beta), x)
    want = alpha[:, None] * softplus(beta[:, None].astype(np.float64) * x)
    np.testing.assert_allclose(got, want, **F32)


# --- binary -----------------------------------------------------------------------------------------------------

BINARY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "real_div": np.true_divide,
    "floor_div": np.floor_divide,
    "mod": np.mod,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
}


@pytest.mark.parametrize("shapes", [((2, 3), (2, 3)), ((2, 1, 3), (4, 1)), ((3,), (2, 1, 3))])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32])
@pytest.mark.parametrize("name", BINARY)
def test_binary_with_broadcasting(mil, rng, name, dtype, shapes):
    x = np.round(rng.uniform(-9, 9, shapes[0]), 2).astype(dtype)
    y = np.round(rng.uniform(1, 5, shapes[1]), 2).astype(dtype) * rng.choice([-1, 1], shapes[1]).astype(dtype)
    got = mil.evaluate(name, lambda x, y: getattr(mil.mb, name)(x=x, y=y), x, y)
    exact = dtype == np.int32 or got.dtype == bool
    want = BINARY[name](x, y) if exact else BINARY[name](x.astype(np.float64), y.astype(np.float64))
    if name == "real_div" and dtype == np.int32:
        want = np.trunc(x / y)
    if exact:
        np.testing.assert_array_equal(got, want)
    elif name in ("mod", "floor_div"):  # discontinuous: compare where float64 agrees which side of the step it is on
        np.testing.assert_allclose(got, BINARY[name](x.astype(np.float32), y.astype(np.float32)), rtol=2e-3, atol=2e-3)
    else:
        close(got, want, dtype)


def test_integer_division_signs(mil):
    x, y = np.array([7, -7, 7, -7], np.int32), np.array([2, 2, -2, -2], np.int32)
    mb = mil.mb
    np.testing.assert_array_equal(mil.evaluate("floor_div", lambda x, y: mb.floor_div(x=x, y=y), x, y), [3, -4, -4, 3])
    np.testing.assert_array_equal(mil.evaluate("mod", lambda x, y: mb.mod(x=x, y=y), x, y), [1, 1, -1, -1])
    np.testing.assert_array_equal(mil.evaluate("real_div", lambda x, y: mb.real_div(x=x, y=y), x, y), [3, -3, -3, 3])


@pytest.mark.parametrize("name", ["floor_div", "mod", "real_div"])
def test_dividing_an_integer_by_zero_is_refused(mil, name):
    from deploykit_targets.coreml.mil_evaluator import EvaluationError

    x = np.array([1, 2], np.int32)
    with pytest.raises(EvaluationError, match=name):
        mil.evaluate(name, lambda x, y: getattr(mil.mb, name)(x=x, y=y), x, np.array([1, 0], np.int32))


def test_dividing_a_float_by_zero_is_infinity(mil):
    x = np.array([1.0, -1.0, 0.0], np.float32)
    got = mil.evaluate("real_div", lambda x, y: mil.mb.real_div(x=x, y=y), x, np.zeros(3, np.float32))
    np.testing.assert_array_equal(got, [np.inf, -np.inf, np.nan])


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pow(mil, dtype):
    x, y = np.array([2, 3, -2, 5], dtype), np.array([3, 2, 3, 0], dtype)
    got = mil.evaluate("pow", lambda x, y: mil.mb.pow(x=x, y=y), x, y)
    np.testing.assert_allclose(got, np.power(x, y), rtol=1e-6)


def test_pow_of_a_negative_base_with_a_fraction_is_nan(mil):
    got = mil.evaluate("pow", lambda x: mil.mb.pow(x=x, y=np.float32(0.5)), np.array([4.0, -4.0], np.float32))
    np.testing.assert_array_equal(got, [2, np.nan])


@pytest.mark.parametrize("name", ["logical_and", "logical_or", "logical_xor"])
def test_logic(mil, name):
    x, y = np.array([[True], [False]]), np.array([True, False])
    got = mil.evaluate(name, lambda x, y: getattr(mil.mb, name)(x=x, y=y), x, y)
    np.testing.assert_array_equal(got, getattr(np, name)(x, y))


def test_logical_not(mil):
    got = mil.evaluate("logical_not", lambda x: mil.mb.logical_not(x=x), np.array([True, False]))
    np.testing.assert_array_equal(got, [False, True])


def test_select_broadcasts_all_three(mil):
    condition, a, b = np.array([[True], [False]]), np.array([1.0, 2.0], np.float32), np.full((2, 1), 9, np.float32)
    got = mil.evaluate("select", lambda c, a, b: mil.mb.select(cond=c, a=a, b=b), condition, a, b)
    np.testing.assert_array_equal(got, [[1, 2], [9, 9]])


# --- casts and quantisation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["int32", "int16", "uint16", "int8", "uint8", "bool", "fp32", "fp16"])
@pytest.mark.parametrize("source", [np.float32, np.float16, np.int32, np.int16, np.bool_])
def test_cast(mil, source, target):
    x = np.array([0, 1, 2.75, 100.5]).astype(source)
    got = mil.evaluate("cast", lambda x: mil.mb.cast(x=x, dtype=target), x)
    np.testing.assert_array_equal(got, x.astype({"fp32": np.float32, "fp16": np.float16}.get(target, target)))


def test_cast_truncates_towards_zero_and_wraps(mil):
    got = mil.evaluate("cast", lambda x: mil.mb.cast(x=x, dtype="int32"), np.array([-2.9, 2.9], np.float32))
    np.testing.assert_array_equal(got, [-2, 2])
    wide = np.array([300, -1, 65536 + 7], np.int32)
    got = mil.evaluate("cast", lambda x: mil.mb.cast(x=x, dtype="uint8"), wide)
    np.testing.assert_array_equal(got, wide.astype(np.uint8))
    got = mil.evaluate("cast", lambda x: mil.mb.cast(x=x, dtype="int16"), np.array([40000], np.int32))
    np.testing.assert_array_equal(got, np.array([40000]).astype(np.int16))


def test_half_overflows_to_infinity_and_rounds_to_even(mil):
    x = np.array([65504, 65519.9, 65520, -1e6, 2049, 2051, 6e-8, 2e-8], np.float32)
    got = mil.evaluate("cast", lambda x: mil.mb.cast(x=x, dtype="fp16"), x)
    np.testing.assert_array_equal(got, [65504, 65504, np.inf, -np.inf, 2048, 2052, np.float16(6e-8), 0])


def test_half_sum_overflows(mil):
    x = np.full(2, 40000, np.float16)
    np.testing.assert_array_equal(mil.evaluate("add", lambda x: mil.mb.add(x=x, y=x), x), [np.inf, np.inf])


def test_an_op_rounds_once_not_inside(mil):
    """(x * x) overflows half, but only the result of the whole op is rounded."""
    x = np.array([[[300.0, 300.0]]], np.float16)
    got = mil.evaluate("reduce_l2_norm", lambda x: mil.mb.reduce_l2_norm(x=x, axes=[2]), x)
    np.testing.assert_array_equal(got, [[np.float16(math.sqrt(180000))]])


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("zero_point", [None, 3])
@pytest.mark.parametrize("axis", [None, 1, -1])
def test_quantize_and_dequantize(mil, rng, dtype, zero_point, axis):
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    x = rng.normal(0, 30, (2, 3, 4)).astype(np.float32)
    count = 1 if axis is None else x.shape[axis]
    scale = np.linspace(0.1, 0.5, count).astype(np.float32)
    zero = np.full(count, zero_point or 0, dtype)
    shape = [1, 1, 1]
    if axis is not None:
        shape[axis] = -1
    options = {"scale": scale if axis is not None else scale[0]}
    if axis is not None:
        options["axis"] = axis
    if zero_point is not None:
        options["zero_point"] = zero if axis is not None else zero[0]
    wide = zero.astype(np.float32).reshape(shape)
    want = np.clip(np.round(x / scale.reshape(shape)) + wide, low, high)
    got = mil.evaluate("quantize", lambda x: mil.mb.quantize(input=x, output_dtype=dtype, **options), x)
    np.testing.assert_array_equal(got, want)
    back = mil.evaluate("dequantize", lambda x: mil.mb.dequantize(input=x, **options), got)
    np.testing.assert_allclose(back, (want - wide) * scale.reshape(shape), rtol=1e-6)


def test_quantize_rounds_ties_to_even_and_saturates(mil):
    x = np.array([0.5, 1.5, 2.5, -0.5, 1e9, -1e9], np.float32)
    got = mil.evaluate("quantize", lambda x: mil.mb.quantize(input=x, scale=np.float32(1), output_dtype="int8"), x)
    np.testing.assert_array_equal(got, [0, 2, 2, 0, 127, -128])
