"""The evaluator's errors, both in deploykit's tree.

ConversionError            exit code 4
├── UnsupportedOpError     the program has an op that the evaluator does not know
└── EvaluationError        an op refused its inputs, or its result is undefined on the device
"""

from __future__ import annotations

from deploykit.contract.errors import ConversionError


class UnsupportedOpError(ConversionError):
    """The program holds an op without an evaluation rule.

    Args:
        op_type: MIL name of the op, such as `custom_layer`.
        output: name of the op's first output, to find it in the program.
        specification_version: version of the model's specification (6 is iOS15, 9 is iOS18).
        reason: why it has no rule, where that is known.
    """

    def __init__(self, op_type: str, *, output: str, specification_version: int, reason: str = "") -> None:
        self.op_type = op_type
        self.output = output
        self.specification_version = specification_version
        because = f": {reason}" if reason else ""
        super().__init__(
            f"the MIL op {op_type!r} (output {output!r}, specification version {specification_version}) "
            f"cannot be evaluated{because}",
            hint="run the package on macOS with Core ML itself, or convert the model without this op",
        )


class EvaluationError(ConversionError):
    """An op cannot be computed from the values that reached it.

    Args:
        message: what is wrong with the values.
        op_type: MIL name of the op.
        output: name of the op's first output.
        what: kind of thing that refused: an op of an ML Program, or a layer of a neural network.
    """

    def __init__(
        self, message: str, *, op_type: str, output: str, hint: str | None = None, what: str = "MIL op"
    ) -> None:
        self.op_type = op_type
        self.output = output
        super().__init__(f"{what} {op_type!r} (output {output!r}): {message}", hint=hint)
