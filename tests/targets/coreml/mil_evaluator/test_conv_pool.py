"""Convolutions and pools against loops in NumPy over windows, written from the op set's definitions."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from deploykit_targets.coreml.mil_evaluator import EvaluationError


def same_pads(sizes, kernel, strides, dilations, lower):
    pads = []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, (math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size)
        pads.append((total - total // 2, total // 2) if lower else (total // 2, total - total // 2))
    return pads


def conv_reference(x, w, bias, strides, pads, dilations, groups):
    """Direct sum over the kernel, float64."""
    x = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *pads])
    n, spatial, kernel = x.shape[0], x.shape[2:], w.shape[2:]
    out = [(s - (k - 1) * d - 1) // st + 1 for s, k, d, st in zip(spatial, kernel, dilations, strides, strict=True)]
    result = np.zeros((n, w.shape[0], *out))
    per_group_out, per_group_in = w.shape[0] // groups, w.shape[1]
    for o in range(w.shape[0]):
        first = o // per_group_out * per_group_in
        for at in itertools.product(*(range(k) for k in kernel)):
            window = tuple(
                slice(a * d, a * d + (size - 1) * st + 1, st)
                for a, d, size, st in zip(at, dilations, out, strides, strict=True)
            )
            for c in range(per_group_in):
                result[:, o] += w[(o, c, *at)] * x[(slice(None), first + c, *window)]
    return result if bias is None else result + bias.reshape(1, -1, *[1] * len(kernel))


@pytest.mark.parametrize("pad_type", ["valid", "custom", "same", "same_lower"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_conv(mil, rng, rank, pad_type):
    sizes, kernel = (7, 6, 5)[:rank], (4, 3, 2)[:rank]
    strides, dilations = (2, 1, 3)[:rank], (1, 2, 1)[:rank]
    x = rng.normal(size=(2, 4, *sizes)).astype(np.float32)
    w = rng.normal(size=(6, 2, *kernel)).astype(np.float32)
    bias = rng.normal(size=6).astype(np.float32)
    flat = [2, 1, 0, 3, 1, 1][: 2 * rank]
    pads = {
        "valid": [(0, 0)] * rank,
        "custom": list(zip(flat[::2], flat[1::2], strict=True)),
        "same": same_pads(sizes, kernel, strides, dilations, lower=False),
        "same_lower": same_pads(sizes, kernel, strides, dilations, lower=True),
    }[pad_type]

    def build(x):
        return mil.mb.conv(
            x=x, weight=w, bias=bias, strides=strides, dilations=dilations, groups=2, pad_type=pad_type, pad=flat
        )

    got = mil.evaluate("conv", build, x)
    np.testing.assert_allclose(got, conv_reference(x, w, bias, strides, pads, dilations, 2), rtol=1e-4, atol=1e-5)


def test_conv_half_is_the_reference_rounded_once(mil, rng):
    x, w = rng.normal(size=(1, 8, 9, 9)).astype(np.float16), rng.normal(size=(4, 8, 3, 3)).astype(np.float16)
    got = mil.evaluate("conv", lambda x: mil.mb.conv(x=x, weight=w, pad_type="valid"), x)
    want = conv_reference(x, w, None, (1, 1), [(0, 0)] * 2, (1, 1), 1).astype(np.float16)
    assert np.all(np.abs(got.astype(float) - want) <= np.spacing(np.abs(want)))


def test_conv_with_a_weight_that_is_computed(mil, rng):
    x, w = rng.normal(size=(1, 2, 5)).astype(np.float32), rng.normal(size=(3, 2, 2)).astype(np.float32)
    got = mil.evaluate("conv", lambda x, w: mil.mb.conv(x=x, weight=w, pad_type="valid"), x, w)
    np.testing.assert_allclose(got, conv_reference(x, w, None, (1,), [(0, 0)], (1,), 1), rtol=1e-5, atol=1e-6)


def test_depthwise_conv(mil, rng):
    x, w = rng.normal(size=(1, 5, 6, 6)).astype(np.float32), rng.normal(size=(10, 1, 3, 3)).astype(np.float32)
    got = mil.evaluate("conv", lambda x: mil.mb.conv(x=x, weight=w, groups=5, pad_type="same"), x)
    want = conv_reference(x, w, None, (1, 1), [(1, 1)] * 2, (1, 1), 5)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def conv_quantized(mil, kind, w, scale, shift):
    return lambda x: mil.mb.conv_quantized(
        x=x, weight=w, quantization_type=kind, quant_scale=scale, quant_bias=shift, pad_type="valid"
    )


@pytest.mark.parametrize("per_channel", [False, True])
def test_conv_quantized(mil, rng, per_channel):
    x, w = rng.normal(size=(1, 2, 5, 5)).astype(np.float32), rng.integers(0, 256, (3, 2, 3, 3)).astype(np.uint8)
    scale = np.array([0.01, 0.02, 0.03], np.float32) if per_channel else np.float32(0.01)
    shift = np.array([-1, -2, -3], np.float32) if per_channel else np.float32(-1.3)
    column = (lambda v: v.reshape(3, 1, 1, 1)) if per_channel else (lambda v: v)
    got = mil.evaluate("conv_quantized", conv_quantized(mil, "linear", w, scale, shift), x)
    dense = w * column(scale).astype(np.float64) + column(shift)
    np.testing.assert_allclose(
        got, conv_reference(x, dense, None, (1, 1), [(0, 0)] * 2, (1, 1), 1), rtol=1e-4, atol=1e-4
    )


def test_conv_quantized_by_table_is_refused_because_its_layout_is_not_documented(mil, rng):
    x, w = np.zeros((1, 2, 5, 5), np.float32), np.zeros((3, 2, 3, 3), np.uint8)
    with pytest.raises(EvaluationError, match="lut"):
        mil.evaluate("conv_quantized", conv_quantized(mil, "lut", w, np.float32(1), np.float32(0)), x)


# --- transposed ---------------------------------------------------------------------------------------------------


def transpose_reference(x, w, strides, dilations, groups):
    """Scatter every input element through the kernel: the whole result, uncropped."""
    kernel, sizes = w.shape[2:], x.shape[2:]
    out = [(n - 1) * s + (k - 1) * d + 1 for n, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)]
    c_in, per_out = x.shape[1] // groups, w.shape[1]
    result = np.zeros((x.shape[0], per_out * groups, *out))
    for at in itertools.product(*(range(k) for k in kernel)):
        window = tuple(
            slice(a * d, a * d + (n - 1) * s + 1, s) for a, d, n, s in zip(at, dilations, sizes, strides, strict=True)
        )
        for c in range(x.shape[1]):
            for o in range(per_out):
                result[(slice(None), c // c_in * per_out + o, *window)] += w[(c, o, *at)] * x[:, c].astype(np.float64)
    return result


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_conv_transpose_custom(mil, rng, rank, groups):
    sizes, kernel = (4, 3, 2)[:rank], (3, 4, 2)[:rank]
    strides, dilations = (2, 3, 1)[:rank], (2, 1, 1)[:rank]
    x = rng.normal(size=(2, 4, *sizes)).astype(np.float32)
    w = rng.normal(size=(4, 3, *kernel)).astype(np.float32)
    bias = rng.normal(size=3 * groups).astype(np.float32)
    pad = [1, 2, 0, 1, 0, 0][: 2 * rank]

    def build(x):
        return mil.mb.conv_transpose(
            x=x, weight=w, bias=bias, strides=strides, dilations=dilations, groups=groups, pad_type="custom", pad=pad
        )

    full = transpose_reference(x, w, strides, dilations, groups)
    crop = tuple(slice(pad[2 * i], full.shape[2 + i] - pad[2 * i + 1]) for i in range(rank))
    want = full[(slice(None), slice(None), *crop)] + bias.reshape(1, -1, *[1] * rank)
    np.testing.assert_allclose(mil.evaluate("conv_transpose", build, x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (4, 2), (2, 3), (5, 1)])
def test_conv_transpose_same_is_the_gradient_of_a_same_conv(mil, rng, kernel, stride):
    x, w = rng.normal(size=(1, 2, 5)).astype(np.float32), rng.normal(size=(2, 3, kernel)).astype(np.float32)
    bias = np.array([1, 2, 3], np.float32)

    def build(x):
        return mil.mb.conv_transpose(x=x, weight=w, bias=bias, strides=[stride], pad_type="same")

    got = mil.evaluate("conv_transpose", build, x)
    size = 5 * stride
    (before, after), probe = same_pads((size,), (kernel,), (stride,), (1,), lower=False)[0], torch.zeros(1, 3, size)
    probe.requires_grad_()
    F.conv1d(F.pad(probe, (before, after)), torch.from_numpy(w), stride=stride).backward(torch.from_numpy(x))
    np.testing.assert_allclose(got, probe.grad.numpy() + bias[:, None], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [7, 8])
def test_conv_transpose_output_shape_extends_at_the_end(mil, rng, size):
    x, w = rng.normal(size=(1, 1, 3)).astype(np.float32), rng.normal(size=(1, 1, 3)).astype(np.float32)

    def build(x):
        return mil.mb.conv_transpose(x=x, weight=w, strides=[2], pad_type="valid", output_shape=[1, 1, size])

    want = F.conv_transpose1d(torch.from_numpy(x), torch.from_numpy(w), stride=2, output_padding=size - 7).numpy()
    np.testing.assert_allclose(mil.evaluate("conv_transpose", build, x), want, rtol=1e-5, atol=1e-6)


# --- pools --------------------------------------------------------------------------------------------------------


def pool_reference(x, kind, kernel, strides, pads, *, ceil=False, exclude=False):
    spatial = x.shape[2:]
    counts = []
    for size, k, s, (before, after) in zip(spatial, kernel, strides, pads, strict=True):
        span = size + before + after - k
        count = (math.ceil(span / s) if ceil else span // s) + 1
        if ceil and (count - 1) * s >= size + before and before + after > 0:
            count -= 1
        counts.append(count)
    result = np.zeros((*x.shape[:2], *counts))
    for at in itertools.product(*(range(c) for c in counts)):
        inside, padded = [], []
        for a, size, k, s, (before, after) in zip(at, spatial, kernel, strides, pads, strict=True):
            low = a * s - before
            inside.append(slice(max(0, low), min(size, low + k)))
            padded.append(min(size + after, low + k) - low)
        window = x[(slice(None), slice(None), *inside)].astype(np.float64).reshape(*x.shape[:2], -1)
        counted = window.shape[-1] if exclude else math.prod(padded)
        value = {"max": window.max(-1), "avg": window.sum(-1) / counted, "l2": np.sqrt((window**2).sum(-1))}[kind]
        result[(slice(None), slice(None), *at)] = value
    return result


POOLS = {"max": "max_pool", "avg": "avg_pool", "l2": "l2_pool"}


def pool(mil, kind, exclude, **options):
    if kind == "avg":
        options["exclude_padding_from_average"] = exclude
    return lambda x: getattr(mil.mb, POOLS[kind])(x=x, **options)


@pytest.mark.parametrize("pad_type", ["valid", "custom", "same", "same_lower"])
@pytest.mark.parametrize(
    ("kind", "rank"),
    [(kind, rank) for kind in POOLS for rank in (1, 2, 3) if (kind, rank) != ("l2", 3)],  # the op set has no such pool
)
def test_pool(mil, rng, rank, kind, pad_type):
    sizes, kernel, strides = (7, 6, 5)[:rank], (3, 2, 4)[:rank], (2, 2, 1)[:rank]
    x = rng.normal(size=(2, 3, *sizes)).astype(np.float32)
    flat = [1, 0, 1, 1, 2, 1][: 2 * rank]
    pads = {
        "valid": [(0, 0)] * rank,
        "custom": list(zip(flat[::2], flat[1::2], strict=True)),
        "same": same_pads(sizes, kernel, strides, (1,) * rank, lower=False),
        "same_lower": same_pads(sizes, kernel, strides, (1,) * rank, lower=True),
    }[pad_type]
    for exclude in [False, True] if kind == "avg" else [False]:
        build = pool(mil, kind, exclude, kernel_sizes=kernel, strides=strides, pad_type=pad_type, pad=flat)
        want = pool_reference(x, kind, kernel, strides, pads, exclude=exclude)
        np.testing.assert_allclose(mil.evaluate(POOLS[kind], build, x), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize(("size", "kernel", "stride"), [(8, 3, 2), (7, 3, 2), (9, 3, 4), (10, 4, 4)])
def test_pool_in_ceil_mode(mil, rng, kind, pad, size, kernel, stride):
    x = rng.normal(size=(1, 2, size, size)).astype(np.float32)
    for exclude in [False, True] if kind == "avg" else [False]:
        sizes = {"kernel_sizes": [kernel] * 2, "strides": [stride] * 2, "pad": [pad] * 4}
        build = pool(mil, kind, exclude, pad_type="custom", ceil_mode=True, **sizes)
        got = mil.evaluate(POOLS[kind], build, x)
        want = pool_reference(x, kind, [kernel] * 2, [stride] * 2, [(pad, pad)] * 2, ceil=True, exclude=exclude)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
        if kind == "avg":
            torch_says = F.avg_pool2d(
                torch.from_numpy(x), kernel, stride, pad, ceil_mode=True, count_include_pad=not exclude
            )
            np.testing.assert_allclose(got, torch_says.numpy(), rtol=1e-5, atol=1e-6)


def test_a_ceil_mode_window_without_any_element_is_refused(mil):
    """Size 6, kernel 2, stride 3: the op set's formula gives three windows, the third starting at 6."""
    x = np.zeros((1, 1, 6), np.float32)
    build = pool(mil, "max", False, kernel_sizes=[2], strides=[3], pad_type="valid", ceil_mode=True)
    with pytest.raises(EvaluationError, match="past the input"):
        mil.evaluate("max_pool", build, x)


def test_max_pool_of_negative_numbers_ignores_the_padding(mil):
    x = np.full((1, 1, 3), -5, np.float32)
    got = mil.evaluate("max_pool", lambda x: mil.mb.max_pool(x=x, kernel_sizes=[3], pad_type="same"), x)
    np.testing.assert_array_equal(got, x)
