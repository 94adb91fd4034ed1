"""`Request`: what an artifact shall be, as values: it can be compared and pickled, and is what is fingerprinted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from deploykit.contract.devices import Device
from deploykit.contract.precision import Precision


@dataclass(frozen=True)
class NoOptions:
    """For toolchains without options."""


@dataclass(frozen=True)
class Request:
    """All that decides the bytes of an artifact but for the model and its calibration.

    Attributes:
        target: as the user typed it.
        toolchain, device: what that means here.
        precision: that both have.
        method: how ranges are chosen from statistics, or `best`.
        include, exclude: module-path patterns of the layers to quantise; an empty include is all.
        options: the toolchain's own options dataclass.
        algorithms: names of the algorithms that are run over the prepared model, in this order, beside those that the
            scheme and the method ask for themselves.
    """

    target: str
    toolchain: str
    device: Device
    precision: Precision
    method: str = "default"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    options: Any = field(default_factory=NoOptions)
    algorithms: tuple[str, ...] = ()

    @property
    def recipe(self) -> dict[str, Any]:
        """The same as plain data, for the fingerprint; how a target is typed does not matter."""
        named = {"algorithms": self.algorithms} if self.algorithms else {}
        return {
            "target": f"{self.device.name}:{self.toolchain}",
            "precision": self.precision.value,
            "method": self.method,
            "include": self.include,
            "exclude": self.exclude,
            "options": msgspec.to_builtins(self.options),
            **named,
        }
