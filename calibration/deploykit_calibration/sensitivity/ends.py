"""What noise is measured at: every floating output, and the worst part of each, as parity judges them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deploykit.contract.errors import CalibrationError
from deploykit.judge.parity import OutputComparison, is_batch
from deploykit.judge.parts import Part

if TYPE_CHECKING:
    from deploykit_calibration.prepared import Prepared

_ORTHOGONAL = 4096


@dataclass(frozen=True)
class End:
    """An output, or a part of one.

    Attributes:
        name: the name of the output, and of the part.
        index: the index of the output in the graph's order.
        part: the part of the output; None for the whole of it.
        sqnr_db: the SQNR of the simulated graph, measured.
        noise: sum of the squares of that graph's errors in it, mean over samples; 0 where it was not measured.
    """

    name: str
    index: int
    part: Part | None
    sqnr_db: float
    noise: float = 0.0

    def directions(self, output: Tensor, most: int, generator: torch.Generator) -> list[Tensor]:
        """Random directions at right angles to each other, of the output's shape; their length is its root of elements.

        The mean of the squares of a noise's products with them is its power: exactly where there are as many as the
        output has elements, as of a few classes.

        Args:
            output: as computed; what is not finite, or outside of the part, has no noise.
            most: directions at most.
        """
        inside = self._inside(output.detach())
        size = int(inside.sum())
        count = min(most, size)
        if size > _ORTHOGONAL:  # so long that signs are nearly at right angles by themselves
            rows = torch.randint(0, 2, (count, size), generator=generator).to(output.dtype) * 2 - 1
        else:
            rows = torch.linalg.qr(torch.randn(size, count, generator=generator))[0].T * size**0.5
        found = [torch.zeros(output.shape, dtype=output.dtype) for _ in range(count)]
        for direction, row in zip(found, rows, strict=True):
            direction[inside] = row.to(output.dtype)
        return found

    def power(self, errors: Tensor) -> float:
        """Sum of the squares of errors in it, of the output's shape; what is not finite counts nothing."""
        return float(errors[self._inside(errors)].double().square().sum())

    def _inside(self, output: Tensor) -> Tensor:
        return output.isfinite() if self.part is None else output.isfinite() & self._mask(output)

    def _mask(self, output: Tensor) -> Tensor:
        assert self.part is not None
        positions = torch.arange(output.shape[self.part.axis])
        if self.part.period:
            positions = positions % self.part.period
        inside = (positions >= self.part.start) & (positions < self.part.stop)
        shape = [1] * output.ndim
        shape[self.part.axis] = -1
        return inside.reshape(shape)


def ends_of(prepared: Prepared, samples: Sequence[Mapping[str, Tensor]]) -> tuple[End, ...]:
    """Run the float and the simulated graph, and say where their difference is to be measured.

    Raises:
        CalibrationError: no output is a float that varies: there is no noise to measure.
    """
    assert prepared.simulation is not None
    captured = prepared.exact
    floats = {spec.name: at for at, spec in enumerate(captured.outputs) if spec.dtype.startswith(("float", "bfloat"))}
    comparisons = {
        name: OutputComparison(name, batch=is_batch(captured.inputs, captured.outputs[at]))
        for name, at in floats.items()
    }
    errors: dict[str, list[Tensor]] = {name: [] for name in floats}
    for feeds in samples:
        want = captured.run(feeds)
        got = prepared.simulation.run({name: tensor.numpy() for name, tensor in feeds.items()})
        for name, comparison in comparisons.items():
            comparison.add(want[name].numpy(), got[name])
            errors[name].append(want[name] - torch.from_numpy(got[name]))
    found = []
    for name, comparison in comparisons.items():
        metrics = comparison.metrics
        if metrics.sqnr_db is not None:
            found.append(End(name, floats[name], None, metrics.sqnr_db))
        if metrics.part is not None:
            found.append(End(f"{metrics.part} of {name}", floats[name], metrics.part, metrics.part.sqnr_db))
    if not found:
        raise CalibrationError(
            "sensitivity is measured as noise at floating outputs, and this model has none that varies",
            hint="let the model return scores, and choose from them outside of it",
        )
    return tuple(replace(end, noise=_mean_power(end, errors[captured.outputs[end.index].name])) for end in found)


def _mean_power(end: End, errors: Sequence[Tensor]) -> float:
    return sum(end.power(each) for each in errors) / len(errors)
