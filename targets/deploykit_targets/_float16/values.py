"""The values of a captured graph as float16 would hold them: peaks, and what rounding to float16 loses.

The float graph is run on samples in float32; nothing of a run is kept but four numbers a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel

FLOAT16_MAX = 65504.0
LEAST_DB = 50.0
"""Rounding at full precision leaves 70 dB and more: less means that values lie below 2**-14."""
SMALLEST_NORMAL = 2.0**-14  # below it float16 has fewer bits, and some units none: they flush to zero


@dataclass(frozen=True)
class Seen:
    """What was seen of a tensor.

    Attributes:
        lowest, highest: finite extremes, 0 included.
        smallest: smallest magnitude that is not zero; infinite where all are.
        energy: sum of squares.
        lost: sum of squares of what rounding to float16 takes away, overflow not counted.
    """

    lowest: float = 0.0
    highest: float = 0.0
    smallest: float = math.inf
    energy: float = 0.0
    lost: float = 0.0

    @property
    def peak(self) -> float:
        """Largest finite magnitude."""
        return max(self.highest, -self.lowest)

    @property
    def kept_db(self) -> float:
        """Signal to rounding noise in float16, in dB; infinite where nothing is lost."""
        return 10 * math.log10(self.energy / self.lost) if self.lost > 0.0 and self.energy > 0.0 else math.inf

    def __or__(self, other: Seen) -> Seen:
        return Seen(
            min(self.lowest, other.lowest),
            max(self.highest, other.highest),
            min(self.smallest, other.smallest),
            self.energy + other.energy,
            self.lost + other.lost,
        )


def fits_float16(values: np.ndarray) -> bool:
    """Whether float16 holds float32 values with its full precision, as good as all of them; masks and zeros fit."""
    one = seen(torch.from_numpy(values.copy()))
    return one.peak <= FLOAT16_MAX and one.kept_db >= LEAST_DB


def seen(value: Tensor) -> Seen:
    """What a float32 tensor holds; infinities and NaN are passed over."""
    flat = value.detach().float().reshape(-1)
    flat = flat[torch.isfinite(flat)].double()
    if not flat.numel():
        return Seen()
    size = flat.abs()
    nonzero = size[size > 0]
    rounded = flat.clamp(-FLOAT16_MAX, FLOAT16_MAX)
    error = rounded - rounded.half().double()
    return Seen(
        min(float(flat.min()), 0.0),
        max(float(flat.max()), 0.0),
        float(nonzero.min()) if nonzero.numel() else math.inf,
        float(flat.square().sum()),
        float(error.square().sum()),
    )


def observe(captured: CapturedModel, samples: Iterable[Mapping[str, Tensor]] = ()) -> dict[str, Seen]:
    """Run the float graph on the example inputs and on samples.

    Args:
        captured: float32.
        samples: feeds by input name.
    Returns:
        Node name -> what was seen of its float results, constants and inputs included.
    """
    watch = _Watch(captured.graph_module)
    feeds = [captured.example_feeds(), *samples]
    with torch.no_grad():
        for each in feeds:
            flat = captured.feeds(dict(each))
            watch.run(*(flat[spec.name] for spec in captured.inputs))
    return watch.found


def widened(found: Mapping[str, Seen], extremes: Mapping[str, tuple[float, float]]) -> dict[str, Seen]:
    """`found` with the extremes that a calibration table saw, by node name."""
    return {
        name: replace(one, lowest=min(one.lowest, extremes[name][0]), highest=max(one.highest, extremes[name][1]))
        if name in extremes
        else one
        for name, one in found.items()
    }


class _Watch(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[str, Seen] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "output" or (n.op == "get_attr" and n.name in self.found):
            return result
        for value in pytree.tree_leaves(result):
            if isinstance(value, Tensor) and value.dtype is torch.float32:
                one = seen(value)
                self.found[n.name] = self.found[n.name] | one if n.name in self.found else one
        return result
