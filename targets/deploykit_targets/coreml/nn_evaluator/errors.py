"""The error of this evaluator, in deploykit's tree beside those of the evaluator of ML Programs."""

from __future__ import annotations

from deploykit.contract.errors import ConversionError


class UnsupportedLayerError(ConversionError):
    """A network holds a layer, or a form of one, without an evaluation rule.

    Args:
        kind: name of the layer's parameters in the specification, such as `branch`.
        name: the name of the layer in the network.
        reason: what about it has no rule; "" for the whole kind.
    """

    def __init__(self, kind: str, *, name: str, reason: str = "") -> None:
        self.kind = kind
        self.name = name
        because = f": {reason}" if reason else ""
        super().__init__(
            f"the neural-network layer {kind!r} (named {name!r}) cannot be evaluated{because}",
            hint="run the model on macOS with Core ML itself, or export an ML Program",
        )
