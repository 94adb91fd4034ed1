from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from deploykit.contract.errors import UsageError

pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")

from deploykit_targets.tvm.kernels.conv import conv
from deploykit_targets.tvm.kernels.conv_plan import ConvShape, pack_conv, pack_conv_constants, plan_conv
from deploykit_targets.tvm.kernels.depthwise import depthwise, pack_depthwise
from deploykit_targets.tvm.kernels.dot import Dot
from deploykit_targets.tvm.kernels.expressions import Affine, limits_of
from deploykit_targets.tvm.kernels.isa import ISAS, Isa
from deploykit_targets.tvm.kernels.residual import Residual
from deploykit_targets.tvm.kernels.step_list import (
    LARGEST_MAGNITUDES,
    LARGEST_SUM,
    blocks_of,
    list_steps,
    listed_layer,
    magnitudes,
    near_pairs,
    paired,
    plan_listed,
    signed_loads,
)

sys.path.insert(0, str(Path(__file__).parent))
from registers import FEATURES, WIDTHS

few = settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


def reference(shape: ConvShape, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """float64 sums, NHWC, by the definition: one output pixel and group at a time."""
    (height, width), group = shape.output, shape.channels // shape.groups
    x = x.reshape(shape.batch, shape.height, shape.width, shape.channels).astype(np.float64)
    split = weight.astype(np.float64).reshape(shape.groups, -1, *weight.shape[1:])
    out = np.zeros((shape.batch, height, width, shape.columns))
    for row in range(height):
        for column in range(width):
            top, left = row * shape.stride[0], column * shape.stride[1]
            window = x[:, top :: shape.dilation[0], left :: shape.dilation[1]][:, : shape.kernel[0], : shape.kernel[1]]
            per_group = window.reshape(*window.shape[:3], shape.groups, group)
            out[:, row, column] = np.einsum("nhwgc,gochw->ngo", per_group, split).reshape(shape.batch, -1)
    return out


def random_data(shape: ConvShape, dot: Dot, elements: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, Any]:
    rng = np.random.default_rng(7)
    size = (shape.columns, shape.channels // shape.groups, *shape.kernel)
    bias = rng.normal(size=shape.columns).astype(np.float32)
    if not dot.quantized:
        data = rng.normal(size=elements), rng.normal(size=size)
        return data[0].astype(np.float32), data[1].astype(np.float32), bias, None
    low, high = limits_of(dot.activation)
    x = rng.integers(low, high + 1, elements).astype(dot.activation)
    largest = dot.largest_weight
    weight = rng.integers(-largest, largest, size).astype(np.int8)
    scale = rng.uniform(0.5, 1.5, shape.columns) / (150 * np.sqrt(np.prod(size[1:])))
    return x, weight, bias + 100, scale.astype(np.float32)


@st.composite
def shapes(draw: st.DrawFn) -> ConvShape:
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride = draw(st.sampled_from([(1, 1), (2, 2), (1, 2)]))
    dilation = draw(st.sampled_from([(1, 1), (2, 2), (1, 2)]))
    height, width = (draw(st.integers(d * (k - 1) + 1, 12)) for k, d in zip(kernel, dilation, strict=True))
    channels, columns = draw(st.integers(1, 13)) * groups, draw(st.integers(1, 50)) * groups
    return ConvShape(draw(st.integers(1, 2)), height, width, channels, columns, kernel, stride, dilation, groups)


def check(shape: ConvShape, dot: Dot, isa: Isa, execute: Any, close: Any, within_one: Any) -> None:
    plan = plan_conv(shape, dot)
    x, weight, bias, scale = random_data(shape, dot, plan.input_elements)
    inputs = x, pack_conv(plan, weight), pack_conv_constants(plan, bias, scale)
    result = execute(conv(plan), isa, *inputs, elements=plan.output_elements, dtype=dot.activation)
    sums = reference(shape, x[: shape.batch * shape.height * shape.width * shape.channels], weight)
    if dot.quantized:
        within_one(result, np.clip(np.rint(sums * scale + bias), *limits_of(dot.activation)))
    else:
        close(result, sums + bias)


@few
@given(shape=shapes())
def test_int8(shape: ConvShape, host_isa: Isa, execute: Any, close: Any, within_one: Any) -> None:
    check(shape, host_isa.int8, host_isa, execute, close, within_one)


@few
@given(shape=shapes())
def test_float32(shape: ConvShape, host_width: Isa, execute: Any, close: Any, within_one: Any) -> None:
    check(shape, host_width.float32, host_width, execute, close, within_one)


@pytest.mark.parametrize(
    "shape",
    [
        ConvShape(1, 1, 1, 200, 70),  # a dense layer of one row
        ConvShape(5, 1, 1, 64, 10),  # and of a batch
        ConvShape(1, 17, 13, 3, 24, (7, 7), (2, 2)),  # a stem: 21 contiguous inputs per line
        ConvShape(1, 16, 16, 64, 64),
        ConvShape(1, 6, 6, 8, 8, (3, 3), groups=8),  # depthwise, as a grouped convolution
    ],
    ids=str,
)
def test_layers_of_real_models(
    shape: ConvShape, host_dot: tuple[Isa, Dot], execute: Any, close: Any, within_one: Any
) -> None:
    isa, dot = host_dot
    check(shape, dot, isa, execute, close, within_one)


@pytest.mark.parametrize(
    "shape",
    [
        ConvShape(2, 9, 9, 5, 20, (3, 3)),  # 49 pixels of seven lines, two images
        ConvShape(2, 17, 17, 6, 34, (3, 3), (2, 2), (2, 2), groups=2),
    ],
    ids=str,
)
def test_a_tile_may_end_in_another_line_than_it_starts_in(
    shape: ConvShape, execute: Any, close: Any, within_one: Any
) -> None:
    avx2 = ISAS["avx2"]
    assert plan_conv(shape, avx2.float32).joined
    check(shape, avx2.float32, avx2, execute, close, within_one)
    check(shape, avx2.int8, avx2, execute, close, within_one)


def test_fused_activation_clips(host_dot: tuple[Isa, Dot], execute: Any) -> None:
    isa, dot = host_dot
    plan = plan_conv(ConvShape(1, 4, 4, 8, 20), dot)
    x, weight, bias, scale = random_data(plan.shape, dot, plan.input_elements)
    inputs = x, pack_conv(plan, weight), pack_conv_constants(plan, bias, scale)
    size = {"elements": plan.output_elements, "dtype": dot.activation}
    free = execute(conv(plan), isa, *inputs, **size)
    limits = (90, 110) if dot.quantized else (-0.5, 0.5)
    clipped = execute(conv(plan, limits=limits), isa, *inputs, **size)
    np.testing.assert_array_equal(clipped, np.clip(free, *limits))
    assert (clipped != free).any()


def test_bytes_beyond_the_input_do_not_count(host_isa: Isa, execute: Any) -> None:
    dot = host_isa.int8
    plan = plan_conv(ConvShape(1, 3, 3, 5, 16), dot)
    assert plan.input_elements > 45
    x, weight, bias, scale = random_data(plan.shape, dot, plan.input_elements)
    results = []
    for beyond in (0, 255):
        x[45:] = beyond
        inputs = x, pack_conv(plan, weight), pack_conv_constants(plan, bias, scale)
        results.append(execute(conv(plan), host_isa, *inputs, elements=plan.output_elements, dtype=dot.activation))
    np.testing.assert_array_equal(*results)


@few
@given(
    data=st.data(),
    padding=st.tuples(*[st.integers(0, 2)] * 4),
    size=st.tuples(st.integers(1, 14), st.integers(1, 40)),
    window=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 2), st.integers(1, 2)),
)
def test_depthwise_with_padding(
    data: st.DataObject,
    padding: tuple[int, int, int, int],
    size: tuple[int, int],
    window: tuple[int, int, int, int],
    host_dot: tuple[Isa, Dot],
    execute: Any,
    close: Any,
    within_one: Any,
) -> None:
    channels, (top, bottom, left, right) = data.draw(st.integers(1, 40)), padding
    kernel, stride = (window[0], window[1]), (window[2], window[3])
    height, width = (max(n + a + b, k) for n, a, b, k in zip(size, (top, left), (bottom, right), kernel, strict=True))
    shape = ConvShape(2, height, width, channels, channels, kernel, stride, groups=channels)
    cut = 2, height - top - bottom, width - left - right, channels
    assume(min(cut) > 0)
    (isa, dot), zero = host_dot, 119 if host_dot[1].quantized else 0
    x, weight, bias, scale = random_data(shape, dot, math.prod(cut))
    constants = bias if scale is None else np.concatenate([scale, bias])
    inputs = x, pack_depthwise(weight, dot), constants.astype(np.float32)
    whole = np.pad(x.reshape(cut), ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=zero)
    sums = reference(shape, whole, weight)
    result_kernel = depthwise(shape, dot, padding=padding, zero=zero)
    result = execute(result_kernel, isa, *inputs, elements=sums.size, dtype=dot.activation)
    if dot.quantized:
        within_one(result, np.clip(np.rint(sums * scale + bias), *limits_of(dot.activation)))
    else:
        close(result, sums + bias)


@few
@given(data=st.data())
def test_depthwise(data: st.DataObject, host_dot: tuple[Isa, Dot], execute: Any, close: Any, within_one: Any) -> None:
    base, channels = data.draw(shapes()), data.draw(st.integers(1, 40))
    sizes = base.batch, base.height, base.width, channels, channels
    shape = ConvShape(*sizes, base.kernel, base.stride, base.dilation, groups=channels)
    isa, dot = host_dot
    x, weight, bias, scale = random_data(shape, dot, shape.batch * shape.height * shape.width * channels)
    constants = bias if scale is None else np.concatenate([scale, bias])
    inputs = x, pack_depthwise(weight, dot), constants.astype(np.float32)
    sums = reference(shape, x, weight)
    result = execute(depthwise(shape, dot), isa, *inputs, elements=sums.size, dtype=dot.activation)
    if dot.quantized:
        within_one(result, np.clip(np.rint(sums * scale + bias), *limits_of(dot.activation)))
    else:
        close(result, sums + bias)


def test_widths_have_the_same_steps() -> None:
    """What `host_width` and `host_dot` leave out is compiled alike: for LLVM's same processor, with the same step."""
    seen = {name: (ISAS[name].target["mcpu"], replace(ISAS[name].float32, step=max)) for name in FEATURES}
    assert {name for name in FEATURES if seen[name] in [seen[width] for width in WIDTHS]} == FEATURES.keys()
    assert len({steps.lanes for _, steps in seen.values()}) == len(WIDTHS)


def test_shapes_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="groups do not divide"):
        ConvShape(1, 4, 4, 6, 8, groups=4)
    with pytest.raises(UsageError, match="larger than the padded"):
        ConvShape(1, 4, 4, 6, 8, (5, 5))
    with pytest.raises(UsageError, match="not depthwise"):
        depthwise(ConvShape(1, 4, 4, 6, 12, groups=6), ISAS["avx2"].int8)


def residual_reference(
    sums: np.ndarray, scale: Any, bias: np.ndarray, other: np.ndarray, added: Residual, limits: tuple[int, int]
) -> np.ndarray:
    """Of int8, in units of `added.to`; `limits` are the dtype's."""
    value, to = sums * scale + bias, added.to
    if added.through is not None:
        rounded = np.clip(np.rint(value), *(added.through_limits or limits))
        value = (rounded - added.through.zero_point) * added.through.scale / to.scale + to.zero_point
    return value + (other.astype(np.float64) - added.other.zero_point) * added.other.scale / to.scale


@pytest.mark.parametrize("columns", [70, 5], ids=["vectors", "narrow"])
@pytest.mark.parametrize("through", [None, Affine(0.031, 120)], ids=["fused", "rounded between"])
def test_int8_with_a_residual(
    columns: int, through: Affine | None, host_isa: Isa, execute: Any, within_one: Any
) -> None:
    dot, shape = host_isa.int8, ConvShape(2, 6, 9, 24, columns, (3, 3))
    plan = plan_conv(shape, dot)
    x, weight, bias, scale = random_data(shape, dot, plan.input_elements)
    other = np.random.default_rng(3).integers(0, 256, plan.output_elements).astype("uint8")
    added = Residual(Affine(0.017, 97), Affine(0.0437, 60), through, None if through is None else (100, 255))
    inputs = x, pack_conv(plan, weight), pack_conv_constants(plan, bias, scale), other
    kernel = conv(plan, limits=(60, 255), residual=added)
    result = execute(kernel, host_isa, *inputs, elements=plan.output_elements, dtype=dot.activation)
    sums = reference(shape, x[: 2 * 6 * 9 * 24], weight)
    expected = residual_reference(sums, scale, bias, other.reshape(sums.shape), added, (0, 255))
    within_one(result, np.clip(np.rint(expected), 60, 255))


@pytest.mark.parametrize("columns", [70, 5], ids=["vectors", "narrow"])
def test_float32_with_a_residual(columns: int, host_width: Isa, execute: Any, close: Any) -> None:
    dot, shape = host_width.float32, ConvShape(1, 6, 9, 24, columns, (3, 3))
    plan = plan_conv(shape, dot)
    x, weight, bias, _ = random_data(shape, dot, plan.input_elements)
    other = np.random.default_rng(3).normal(size=plan.output_elements).astype("f4")
    inputs = x, pack_conv(plan, weight), pack_conv_constants(plan, bias), other
    kernel = conv(plan, limits=(0, 1e9), residual=Residual())
    result = execute(kernel, host_width, *inputs, elements=plan.output_elements, dtype="float32")
    sums = reference(shape, x, weight)
    close(result, np.maximum(sums + bias + other.reshape(sums.shape), 0))


@pytest.mark.parametrize("added", [False, True], ids=["alone", "with a residual"])
def test_int8_products_stored_as_float32(added: bool, host_isa: Isa, execute: Any, close: Any) -> None:
    dot, shape = host_isa.int8, ConvShape(1, 1, 9, 24, 37)
    plan = plan_conv(shape, dot)
    x, weight, bias, scale = random_data(shape, dot, plan.input_elements)
    inputs = [x, pack_conv(plan, weight), pack_conv_constants(plan, bias, scale)]
    expected = reference(shape, x[: 9 * 24], weight) * scale + bias
    if added:
        inputs.append(np.random.default_rng(3).normal(size=plan.output_elements).astype("f4"))
        expected = expected + inputs[-1].reshape(expected.shape)
    kernel = conv(plan, output="float32", residual=Residual() if added else None)
    close(execute(kernel, host_isa, *inputs, elements=plan.output_elements, dtype="float32"), expected)


def test_weights_that_would_saturate_are_refused() -> None:
    plan = plan_conv(ConvShape(1, 4, 4, 8, 8), ISAS["avx2_7bit"].int8)
    with pytest.raises(UsageError, match="vpmaddubsw takes weights up to 64"):
        pack_conv(plan, np.full((8, 8, 1, 1), 65, np.int8))


def test_sums_at_the_end_of_their_range_do_not_saturate(host_isa: Isa, execute: Any, within_one: Any) -> None:
    dot, largest = host_isa.int8, host_isa.int8.largest_weight
    plan = plan_conv(ConvShape(1, 4, 4, 64, 16), dot)
    x, weight = np.full(plan.input_elements, 255, np.uint8), np.full((16, 64, 1, 1), -largest, np.int8)
    bias, scale = np.full(16, 255, np.float32), np.full(16, 1e-4, np.float32)
    inputs = x, pack_conv(plan, weight), pack_conv_constants(plan, bias, scale)
    result = execute(conv(plan), host_isa, *inputs, elements=plan.output_elements, dtype=dot.activation)
    within_one(result, np.full(result.shape, np.rint(255 - 64 * 255 * largest * 1e-4)))


FOUR_WEIGHTS = st.lists(st.integers(-128, 127), min_size=4, max_size=4).map(np.array)
FOUR_INPUTS = st.lists(st.sampled_from([0, 1, 127, 128, 254, 255]), min_size=4, max_size=4).map(np.array)


@given(a=FOUR_INPUTS, w=FOUR_WEIGHTS)
def test_sums_of_weights_that_fit_stay_within_16_bits(a: np.ndarray, w: np.ndarray) -> None:
    assume((signed_loads(w.reshape(2, 1, 2)).sum(axis=0) <= LARGEST_SUM).all())
    assert -(1 << 15) <= (a * w).sum() < 1 << 15


@given(a=FOUR_INPUTS, w=FOUR_WEIGHTS)
def test_centred_inputs_times_magnitudes_that_fit_stay_within_16_bits(a: np.ndarray, w: np.ndarray) -> None:
    centred = np.where(w < 0, 127 - a, a - 128)
    if magnitudes(w.reshape(2, 1, 2)).sum() <= LARGEST_MAGNITUDES:
        assert -(1 << 15) <= (centred * np.abs(w)).sum() < 1 << 15
    assert (magnitudes(w.reshape(2, 1, 2)) <= LARGEST_MAGNITUDES).all(), "two weights always fit"
    assert (a * w).sum() == (centred * np.abs(w)).sum() + 128 * w.sum() - np.minimum(w, 0).sum()


@pytest.mark.parametrize("pair", [(127, 2), (65, 64), (-128, -1), (-64, -65)])
def test_weights_that_do_not_fit_would_saturate(pair: tuple[int, int]) -> None:
    assert (signed_loads(np.array([pair])) > LARGEST_SUM).any()
    assert not -(1 << 15) <= 255 * sum(pair) < 1 << 15


@given(seed=st.integers(0, 99), steps=st.integers(0, 60), sums=st.integers(1, 6))
def test_every_step_is_in_one_pair_that_fits_or_in_none(seed: int, steps: int, sums: int) -> None:
    loads = np.random.default_rng(seed).integers(0, 128, (steps, sums)).astype(np.int16)
    for find in (paired, near_pairs):
        pairs, rest = find(loads, LARGEST_SUM)
        assert sorted([*pairs.ravel(), *rest]) == list(range(steps))
        assert (loads[pairs].sum(axis=1) <= LARGEST_SUM).all()


def test_pairs_are_of_steps_beside_each_other_where_most_of_these_fit_and_in_order() -> None:
    loads = np.full((300, 4), 60, np.int16)
    loads[7] = 100  # fits with none, so that its neighbour has another partner
    pairs, rest = near_pairs(loads, LARGEST_SUM)
    assert {tuple(sorted(pair)) for pair in pairs} >= {(2 * n, 2 * n + 1) for n in range(150) if n != 3}
    assert sorted(rest) == [6, 7]
    pairs, rest = near_pairs(np.tile(np.array([[100], [100], [20], [20]], np.int16), (75, 1)), LARGEST_SUM)
    assert len(rest) == 0
    assert (np.diff(pairs.min(axis=1)) > 0).all(), "read in the order of memory"
    assert (np.abs(np.diff(pairs, axis=1)) < 128).all(), "partners are near each other"


LISTED = [  # and the vectors of columns in a tile
    (ConvShape(1, 9, 9, 24, 40, (3, 3)), (1, 2, 4)),  # lines are joined; columns that 16 does not divide
    (ConvShape(2, 11, 12, 36, 34, (3, 3), (2, 2), (2, 2), groups=2), (1, 2)),
    (ConvShape(1, 1, 30, 70, 33), (1, 2, 4)),  # a dense layer, inputs that fill no step
    (ConvShape(1, 6, 6, 20, 12, (2, 2)), (1,)),  # fewer columns than lie beside each other in packed weights
]


@pytest.mark.parametrize(
    ("shape", "vectors"), [(shape, count) for shape, counts in LISTED for count in counts], ids=str
)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("name", ["avx2", "avx2_7bit"])
def test_no_step_of_a_list_saturates(
    shape: ConvShape, residual: bool, name: str, vectors: int, execute: Any, within_one: Any
) -> None:
    """Inputs are at both ends of their range, and some of the weights, too."""
    target, rng = ISAS[name], np.random.default_rng(3)
    size, largest = (shape.columns, shape.channels // shape.groups, *shape.kernel), target.int8.largest_weight
    weight = np.clip(rng.normal(0, largest / 6, size), -largest, largest - 1).astype(np.int8)
    for end in (-largest, largest - 1):
        weight[rng.random(size) < 0.005] = end
    plan = plan_listed(shape, target.int8, vectors)
    assert plan.listed and plan.tile == vectors
    x = rng.choice(np.array([0, 1, 254, 255], np.uint8), plan.input_elements, p=[0.2, 0.1, 0.1, 0.6])
    scale, packed = np.full(shape.columns, 1 / (90 * np.sqrt(np.prod(size[1:]))), np.float32), pack_conv(plan, weight)
    sums = reference(shape, x[: shape.batch * shape.height * shape.width * shape.channels], weight)
    bias = (128 - sums.mean(axis=(0, 1, 2)) * scale).astype(np.float32)
    steps = list_steps(plan, packed)
    constants = np.concatenate([pack_conv_constants(plan, bias, scale), steps])
    assert constants.size == plan.constant_elements
    counts = blocks_of(plan, steps)[:, vectors * plan.dot.lanes :][:, :4]
    assert (counts @ [2, 1, 2, 1] == plan.window_steps).all()
    assert (counts.sum(axis=0) > 0).sum() >= (3 if name == "avx2" else 1), "several parts of the list"
    expected = sums * scale + bias
    others: tuple[np.ndarray, ...] = ()
    if residual:
        other = rng.integers(0, 256, plan.output_elements).astype(np.uint8)
        others = (other,)
        expected += other.reshape(expected.shape).astype(np.float64) - 7
    kernel = conv(plan, residual=Residual(Affine(1.0, 7), Affine(1.0, 0)) if residual else None)
    result = execute(kernel, target, x, packed, constants, *others, elements=plan.output_elements, dtype="uint8")
    within_one(result, np.clip(np.rint(expected), 0, 255))


def test_what_has_one_row_or_adds_no_pairs_has_no_list() -> None:
    weight = np.ones((32, 64, 1, 1), np.int8)
    assert listed_layer(ConvShape(1, 8, 8, 64, 32), ISAS["avx2"].int8, weight) is not None
    assert listed_layer(ConvShape(1, 8, 8, 64, 32), ISAS["avx512_vnni"].int8, weight) is None
    assert listed_layer(ConvShape(1, 1, 1, 64, 32), ISAS["avx2"].int8, weight) is None


@pytest.mark.parametrize(("name", "vectors"), [("avx2", 1), ("avx2_7bit", 4)])
def test_a_tile_has_as_many_columns_as_its_steps_fit_together(name: str, vectors: int) -> None:
    """Of eight columns with weights of eight bits, most of whose steps would fit alone only; of 32 with seven."""
    dot, size = ISAS[name].int8, (64, 256, 1, 1)
    largest = dot.largest_weight - 1
    weight = np.clip(np.rint(np.random.default_rng(5).normal(0, largest / 3.5, size)), -largest, largest)
    found = listed_layer(ConvShape(1, 14, 14, 256, 64), dot, weight.astype(np.int8))
    assert found is not None and found.plan.tile == vectors
    np.testing.assert_array_equal(found.steps, list_steps(found.plan, pack_conv(found.plan, weight.astype(np.int8))))
