"""Counting instructions: by kernel, through the functions that it mentions; a false claim is an error."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deploykit.contract.errors import ConversionError
from deploykit_targets.tvm.disassemble import Product, confirm, kernels_in
from deploykit_targets.tvm.program import Operand, Program, Region, Step

ARM = """
\t.type\t__tvm_ffi_conv,@function
__tvm_ffi_conv:
\tumull\tx8, w9, w10
\tbl\tconv_compute_
\t.size\t__tvm_ffi_conv, .Lend-__tvm_ffi_conv
\t.type\tconv_compute_,@function
conv_compute_:
\tadrp\tx0, .L__tvm_parallel_lambda
\t.size\tconv_compute_, .Lend-conv_compute_
\t.type\t.L__tvm_parallel_lambda,@function
.L__tvm_parallel_lambda:
\tsdot\tv16.4s, v12.16b, v8.4b[0]
\tsdot\tv17.4s, v12.16b, v8.4b[1]
\tfmla\tv0.4s, v1.4s, v2.4s
\t.size\t.L__tvm_parallel_lambda, .Lend-.L__tvm_parallel_lambda
\t.type\t__tvm_ffi_dense,@function
__tvm_ffi_dense:
\tumull\tx8, w9, w10
\tadrp\tx0, .L__tvm_parallel_lambda.7
\t.size\t__tvm_ffi_dense, .Lend-__tvm_ffi_dense
\t.type\t.L__tvm_parallel_lambda.7,@function
.L__tvm_parallel_lambda.7:
\tfmla\tv0.4s, v1.4s, v2.4s
\t.size\t.L__tvm_parallel_lambda.7, .Lend-.L__tvm_parallel_lambda.7
\t.type\t__tvm_ffi_depthwise,@function
__tvm_ffi_depthwise:
\tsmlal2\tv0.4s, v1.8h, v2.8h
\t.size\t__tvm_ffi_depthwise, .Lend-__tvm_ffi_depthwise
\t.type\t__tvm_ffi_pool,@function
__tvm_ffi_pool:
\tsmax\tv0.16b, v0.16b, v1.16b
\t.size\t__tvm_ffi_pool, .Lend-__tvm_ffi_pool
\t.quad\t__tvm_ffi_conv
"""
X86 = """
\t.type\t__tvm_ffi_conv,@function
__tvm_ffi_conv:
\tcallq\tconv_compute_
\t.size\t__tvm_ffi_conv, .Lend-__tvm_ffi_conv
\t.type\tconv_compute_,@function
conv_compute_:
\tvpdpbusd\t(%rax){1to16}, %zmm0, %zmm1
\tvfmadd213ps\t(%rdi), %zmm1, %zmm2
\t.size\tconv_compute_, .Lend-conv_compute_
\t.quad\t__tvm_ffi_conv
"""


def program(symbol: str, *, integer: bool) -> Program:
    output = Operand(Region.ARENA, 0, 1, "int8")
    return Program((), (), (Step(symbol, (output,), "layer", "conv", 10, integer),), 0, 64)


@pytest.mark.parametrize(
    ("symbol", "product"),
    [("conv", Product.DOT), ("dense", Product.FLOAT), ("depthwise", Product.INTEGER), ("pool", Product.NONE)],
)
def test_how_a_kernel_multiplies(symbol: str, product: Product) -> None:
    assert kernels_in(ARM, [symbol])[symbol].product is product


def test_instructions_of_the_loops_body_count_and_those_of_other_kernels_do_not() -> None:
    assert dict(kernels_in(ARM, ["conv"])["conv"].mnemonics) == {"sdot": 2, "fmla": 1}


def test_avx_instructions() -> None:
    found = kernels_in(X86, ["conv"])["conv"]
    assert found.product is Product.DOT and str(found) == "1 vfmadd213ps, 1 vpdpbusd"


def test_a_confirmed_claim() -> None:
    assert confirm(ARM, program("conv", integer=True))["layer"].integer


def test_a_false_claim_names_layer_and_instructions() -> None:
    with pytest.raises(ConversionError, match=r"layer is to run in integers.*dense has 1 fmla"):
        confirm(ARM, program("dense", integer=True))


def test_float_kernels_may_be_float() -> None:
    assert not confirm(ARM, program("dense", integer=False))["layer"].integer


def test_a_kernel_that_is_not_there() -> None:
    with pytest.raises(ConversionError, match="no function of kernel gone"):
        kernels_in(ARM, ["gone"])


def test_instructions_of_avx_vnni_have_a_prefix() -> None:
    code = "\t.type\t__tvm_ffi_conv,@function\n\t{vex}\tvpdpbusd\t(%rdi), %ymm1, %ymm2\n\t.size\t__tvm_ffi_conv, 1\n"
    assert kernels_in(code, ["conv"])["conv"].product is Product.DOT


def test_a_product_of_bfloat16_has_an_instruction_for_it_where_the_silicon_has() -> None:
    operands = tuple(Operand(Region.ARENA, 0, 1, "uint16") for _ in range(3))
    step = Step("conv", operands, "layer", "conv", 10)
    assert step.computes == "bfloat16"
    body = "\tvdpbf16ps\t%zmm1, %zmm2, %zmm0\n"
    code = "\t.type\t__tvm_ffi_conv,@function\n{}\t.size\t__tvm_ffi_conv, 1\n"
    narrow = frozenset({"vdpbf16ps"})
    found = confirm(code.format(body), Program((), (), (step,), 0, 64), bfloat16=narrow)
    assert found["layer"].product is Product.BFLOAT16
    widened = code.format("\tvfmadd231ps\t%zmm1, %zmm2, %zmm0\n")
    assert confirm(widened, Program((), (), (step,), 0, 64))["layer"].product is Product.FLOAT
    with pytest.raises(ConversionError, match=r"layer is to run in bfloat16.*conv has 1 vfmadd231ps"):
        confirm(widened, Program((), (), (step,), 0, 64), bfloat16=narrow)
    depthwise = replace(step, kind="depthwise")
    assert confirm(widened, Program((), (), (depthwise,), 0, 64), bfloat16=narrow)
