"""What TVM cannot say: small functions of LLVM's own language, over types that its passes rewrite, or without code.

TVM turns bfloat16 into float32 or into integers before it makes code, so that no call of its own fits an intrinsic
over bfloat16. A kernel brings the functions that it calls along; LLVM puts their one instruction where the call was.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.ir import StringImm
from tvm.tirx import AttrStmt, IntImm

from deploykit_targets.tvm.kernels.expressions import Expr
from deploykit_targets.tvm.kernels.script import T


def intrinsic(name: str, dtype: str, *arguments: Expr) -> Expr:
    """A call of an intrinsic of LLVM that changes nothing else."""
    return T.call_llvm_pure_intrin(dtype, T.llvm_lookup_intrinsic_id(name), *arguments)


def repeat(pair: Expr, dtype: str, lanes: int) -> Expr:
    """The same 32 bits in each lane, seen as `dtype`."""
    return T.reinterpret(dtype, T.Broadcast(T.reinterpret("int32", pair), lanes))


FINISHED = """
define i32 @deploykit_finished(<8 x i32> %sums) alwaysinline {
  call void asm sideeffect "", "x,~{memory}"(<8 x i32> %sums)
  ret i32 0
}
"""
"""The function that `finished` calls."""


def finished(sums: Expr) -> Expr:
    """No instruction (x86), before which eight int32 sums are finished, and behind which the next loads are.

    LLVM brings the loads of all rows of a tile forward, and then has no registers for them; what follows one another
    in the code runs beside each other all the same. `expressions.in_turn` is Arm's.
    """
    return T.call_extern("int32", "deploykit_finished", sums)


@dataclass(frozen=True)
class Call:
    """A product of pairs of bfloat16, `float32xN <- float32xN, int32xN, int32xN`, as a function over an intrinsic.

    Attributes:
        name: of the function.
        intrinsic: LLVM's name.
        lanes: sums; each has two or more products.
    """

    name: str
    intrinsic: str
    lanes: int

    @property
    def code(self) -> str:
        """The function, in LLVM's assembly language."""
        n = self.lanes
        sums, bits, pairs = f"<{n} x float>", f"<{n} x i32>", f"<{2 * n} x bfloat>"
        return f"""
declare {sums} @{self.intrinsic}({sums}, {pairs}, {pairs})
define {sums} @{self.name}({sums} %sums, {bits} %a, {bits} %w) {{
  %inputs = bitcast {bits} %a to {pairs}
  %weights = bitcast {bits} %w to {pairs}
  %result = call {sums} @{self.intrinsic}({sums} %sums, {pairs} %inputs, {pairs} %weights)
  ret {sums} %result
}}
"""

    def __call__(self, sums: Expr, a: Expr, w: Expr) -> Expr:
        """The call; `a` and `w` are vectors of as many bytes as `sums`."""
        bits = [T.reinterpret(f"int32x{self.lanes}", value) for value in (a, w)]
        return T.call_pure_extern(f"float32x{self.lanes}", self.name, sums, *bits)


def with_code(kernel: Expr, code: str) -> Expr:
    """A kernel that brings the functions that it calls along; as it is where there are none."""
    if not code:
        return kernel
    body = AttrStmt(IntImm("int32", 0), "pragma_import_llvm", StringImm(code), kernel.body)
    return kernel.with_body(body)
