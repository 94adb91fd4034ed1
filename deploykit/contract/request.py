"""`Request`: what an artifact shall be, as values: it can be compared and pickled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from deploykit.contract.devices import Device
from deploykit.contract.precision import Precision
from deploykit.contract.recipe import Recipe


@dataclass(frozen=True)
class NoOptions:
    """The options of toolchains that have none."""


@dataclass(frozen=True)
class Request:
    """All that decides the bytes of an artifact but for the model and its calibration.

    Attributes:
        target: as the user typed it.
        toolchain, device: what that means here.
        precision: the precision that both have.
        method: how ranges are chosen from statistics, or `best`.
        include, exclude: module-path patterns of the layers to quantise; an empty include is all.
        options: the toolchain's own options dataclass.
        algorithms: names of the algorithms that are run over the prepared model, in this order, beside those that the
            scheme and the method ask for themselves.
        recipe: the recipe that is followed: its algorithms are all that are run, and its layers and ranges are as it
            says; None where everything is decided from the fields above.
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
    recipe: Recipe | None = None
