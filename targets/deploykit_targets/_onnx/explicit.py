"""A prepared model -> ONNX for GPUs with explicit quantization, in any precision that TensorRT and MIGraphX have.

One graph serves both; what differs is data: the scheme, the lint rules, the opset. The lint's verdict is part of the
result, because neither runtime can be asked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from deploykit.contract.errors import ConversionError
from deploykit_calibration.layers import reconcile
from deploykit_targets._float16 import Float16Plan, plan_float16
from deploykit_targets._onnx.between import float_name
from deploykit_targets._onnx.lint import Finding, LintRules, errors_of, lint
from deploykit_targets._onnx.lower import MIN_OPSET
from deploykit_targets._onnx.lowered import lowered
from deploykit_targets._onnx.retype import BFLOAT16, FLOAT16, retype
from deploykit_targets._onnx.split_products import split_products
from deploykit_targets._onnx.take_down import take_down
from deploykit_targets._onnx.traffic import traffic_of

if TYPE_CHECKING:
    import onnx

    from deploykit.contract.achieved import Achieved
    from deploykit_calibration.prepared import Prepared


_FLOAT_TYPES = {"float16": FLOAT16, "bfloat16": BFLOAT16}
_UNTYPED = "float layers are float32 in the file; the device's compiler turns them into the narrower type"
SOURCE = "q/dq nodes and types of the ONNX file; what the device runs is known after the build"


@dataclass(frozen=True, eq=False)
class Explicit:
    """What was made of a prepared model.

    Attributes:
        model: the ONNX file.
        log: what exporters printed.
        findings: warnings of the lint.
        achieved: layers by the precision that the file asks for.
        traffic: what layers move, as `deploykit.artifact.manifest.Facts` says.
        rules: the rules that it was checked against.
        plain: the type of what is not quantized.
    """

    model: onnx.ModelProto
    log: str
    findings: tuple[Finding, ...]
    achieved: Achieved
    traffic: Mapping[str, tuple[int, int, int]]
    rules: LintRules
    plain: str = "float32"


def lower_explicit(prepared: Prepared, rules: LintRules, *, opset: int, typed: bool = True) -> Explicit:
    """Lower a prepared model and check the result.

    Args:
        prepared: in fp32, fp16, bf16, int8, mixed (int8 with float16 between) or fp8.
        rules: the rules of the toolchain that will read the file.
        opset: newest that the device reads; below 18 the file is written at 18 and taken down.
        typed: whether float16 and bfloat16 are types of the file; False where the builder is told by flags.

    Raises:
        ConversionError: an operator has no ONNX form, a value does not fit a type, or the runtime will refuse the file.
    """
    made = lowered(prepared, opset=max(opset, MIN_OPSET))
    if prepared.scheme.split_attention:
        split_products(made.model)
    plain = float_name(prepared)
    plan = plan_float16(prepared) if typed and plain == "float16" else Float16Plan()
    if typed and plain in _FLOAT_TYPES:
        retype(made.model, _FLOAT_TYPES[plain], plan.kept)
    model = made.model if opset >= MIN_OPSET else take_down(made.model, opset, prepared.captured)
    findings = checked(model, replace(rules, max_opset=opset))
    notes = () if typed or plain not in _FLOAT_TYPES else (_UNTYPED,)
    achieved = plan.listed(_achieved(prepared, plan, plain, notes), prepared.captured)
    return Explicit(model, made.log, findings, achieved, traffic_of(prepared.captured), rules, plain)


def checked(model: onnx.ModelProto, rules: LintRules) -> tuple[Finding, ...]:
    """The warnings of the lint.

    Raises:
        ConversionError: an error of it; names nodes and rules.
    """
    findings = lint(model, rules)
    if broken := errors_of(findings):
        raise ConversionError(
            f"{rules.name} would refuse the model: {'; '.join(map(str, broken[:5]))}",
            hint="replace the operation, or keep the layer in float (exclude=)",
        )
    return findings


def _achieved(prepared: Prepared, plan: Float16Plan, plain: str, notes: tuple[str, ...]) -> Achieved:
    executed = {
        layer.name: layer.precision if layer.precision != "float" else "float32" if layer.name in plan.kept else plain
        for layer in prepared.layers
    }
    return reconcile(prepared, executed, source=SOURCE, notes=notes)
