"""`Request`: what an artifact shall be, as values: it can be compared and pickled."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from deploykit.contract.devices import Device
from deploykit.contract.precision import Precision
from deploykit.contract.recipe import Recipe

_PRECISIONS = "precisions"


def of_precisions(default: Any, *precisions: str) -> Any:
    """The default of an option that only some precisions use: in others a different value is refused.

    An options dataclass says `block_size: int = of_precisions(32, "int4-weight-only")`.
    """
    return field(default=default, metadata={_PRECISIONS: frozenset(precisions)})


def precisions_of_options(options: Any) -> dict[str, frozenset[str]]:
    """The names of the options of a toolchain's dataclass that only some precisions use, and those precisions."""
    return {each.name: each.metadata[_PRECISIONS] for each in fields(options) if _PRECISIONS in each.metadata}


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
