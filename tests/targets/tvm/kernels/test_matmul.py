from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from deploykit.contract.errors import UsageError

pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")

import tvm

from deploykit_targets.tvm.kernels.conv import conv
from deploykit_targets.tvm.kernels.conv_plan import ConvPlan, pack_conv
from deploykit_targets.tvm.kernels.expressions import Affine, limits_of
from deploykit_targets.tvm.kernels.isa import ISAS, Isa
from deploykit_targets.tvm.kernels.matmul import pack_operand, plan_matmul

# batch, rows, inputs, columns, heads: one head, several, images, columns short of a vector and beyond a tile; inputs
# that fill the steps, and others
SIZES = [(1, 9, 16, 20, 1), (2, 7, 10, 33, 3), (3, 5, 6, 4, 2), (1, 40, 64, 70, 2)]


def product(plan: ConvPlan, a: np.ndarray, b: np.ndarray, transposed: bool) -> np.ndarray:
    """float64, (batch, rows, heads * columns)."""
    shape, heads = plan.shape, plan.shape.groups
    first = a.reshape(shape.batch, shape.width, heads, -1)
    second = b.reshape(shape.batch, -1, heads, plan.run if transposed else plan.group_columns)
    return np.einsum("brhk,bchk->brhc" if transposed else "brhk,bkhc->brhc", first, second)


def run(plan: ConvPlan, pack: Any, isa: Isa, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    functions = {"pack": pack, "product": conv(plan)}
    module = tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in functions.items()})
    library = tvm.compile(module, target=tvm.target.Target(dict(isa.target)))
    weights, constants = np.empty(plan.weight_elements, plan.dot.weight), np.empty(plan.constant_elements, np.float32)
    result = np.empty(plan.output_elements, plan.dot.activation)
    first, second, w, c, y = (tvm.runtime.tensor(array) for array in (a, b, weights, constants, result))
    library["pack"](second, w, c)
    library["product"](first, w, c, y)
    return y.numpy()


@pytest.mark.parametrize("transposed", [True, False], ids=["keys", "values"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_int8(sizes: tuple[int, ...], transposed: bool, host_isa: Isa, within_one: Any) -> None:
    batch, rows, inputs, columns, heads = sizes
    plan, rng = plan_matmul(batch, rows, inputs, columns, host_isa.activations, heads=heads), np.random.default_rng(1)
    a, b = (rng.integers(0, 256, n).astype(np.uint8) for n in (plan.input_elements, batch * heads * inputs * columns))
    first, second, to = Affine(0.021, 99), Affine(0.013, 128), Affine(0.0571 * np.sqrt(inputs), 110)
    pack = pack_operand(plan, transposed=transposed, first=first, second=second, to=to, factor=0.25)
    real = [(x.astype(np.float64) - q.zero_point) * q.scale for x, q in ((a, first), (b, second))]
    real[0] = real[0][: batch * rows * heads * inputs]
    expected = 0.25 * product(plan, *real, transposed) / to.scale + to.zero_point
    within_one(run(plan, pack, host_isa, a, b), np.clip(np.rint(expected), *limits_of("uint8")))


@pytest.mark.parametrize("transposed", [True, False], ids=["keys", "values"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_float32(sizes: tuple[int, ...], transposed: bool, host_width: Isa, close: Any) -> None:
    batch, rows, inputs, columns, heads = sizes
    plan, rng = plan_matmul(batch, rows, inputs, columns, host_width.float32, heads=heads), np.random.default_rng(1)
    a, b = (rng.normal(size=n).astype("f4") for n in (plan.input_elements, batch * heads * inputs * columns))
    result = run(plan, pack_operand(plan, transposed=transposed), host_width, a, b)
    close(result, product(plan, a.astype(np.float64), b.astype(np.float64), transposed))


@pytest.mark.parametrize("transposed", [True, False], ids=["keys", "values"])
@pytest.mark.parametrize("sizes", [(2, 40, 80, 70, 2), (1, 9, 67, 33, 2)], ids=str)
def test_an_operand_is_packed_as_weights_are(sizes: tuple[int, ...], transposed: bool) -> None:
    """With the plan for matrices of AMX, which any machine can pack for: inputs are filled up to 64."""
    batch, rows, inputs, columns, heads = sizes
    plan = plan_matmul(batch, rows, inputs, columns, ISAS["amx_int8"].int8, heads=heads)
    kernel = pack_operand(plan, transposed=transposed, second=Affine(1.0, 128)).with_attr("global_symbol", "main")
    library = tvm.compile(tvm.IRModule({"main": kernel}), target=tvm.target.Target(dict(ISAS["avx2"].target)))
    codes = np.random.default_rng(2).integers(0, 256, batch * heads * inputs * columns).astype(np.uint8)
    packed, constants = np.full(plan.weight_elements, 77, np.int8), np.zeros(plan.constant_elements, np.float32)
    arguments = [tvm.runtime.tensor(array) for array in (codes, packed, constants)]
    library["main"](*arguments)
    weights = (codes.astype(np.int32) - 128).astype(np.int8)
    order, sizes = ((0, 2, 1, 3), (columns, heads, inputs)) if transposed else ((0, 2, 3, 1), (inputs, heads, columns))
    one = replace(plan, shape=replace(plan.shape, batch=1), weight_sets=1)
    images = weights.reshape(batch, *sizes).transpose(order).reshape(batch, heads * columns, inputs, 1, 1)
    np.testing.assert_array_equal(arguments[1].numpy(), np.concatenate([pack_conv(one, image) for image in images]))


def test_an_asymmetric_second_operand_is_refused() -> None:
    with pytest.raises(UsageError, match="zero point 7"):
        pack_operand(plan_matmul(1, 2, 4, 4, ISAS["avx2"].int8), transposed=True, second=Affine(1.0, 7))
