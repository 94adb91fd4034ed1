"""How a model is called while it is pruned: with its example inputs, with noise beside them, with calibration data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deploykit_calibration.observe import first_samples

if TYPE_CHECKING:
    from deploykit.capture import CapturedModel
    from deploykit.capture.sources import Source

_MOST_ROWS = 64


@dataclass(frozen=True)
class Calls:
    """Ways to call a model.

    Attributes:
        example: example inputs as flat leaves.
        spec: how the leaves make up positional and named arguments.
    """

    example: tuple[Any, ...]
    spec: Any

    @classmethod
    def of(cls, source: Source) -> Calls:
        """Calls with the example inputs of a source, on the CPU."""
        leaves, spec = pytree.tree_flatten((source.args, source.kwargs))
        return cls(tuple(x.detach().cpu() if isinstance(x, Tensor) else x for x in leaves), spec)

    def run(self, model: nn.Module) -> Any:
        """Call a model on the CPU with the example inputs."""
        return self.call(model, self.example)

    def call(self, model: nn.Module, leaves: Sequence[Any]) -> Any:
        """Call a model with other leaves."""
        args, kwargs = pytree.tree_unflatten(list(leaves), self.spec)
        return model(*args, **kwargs)

    def noisy(self) -> tuple[Any, ...]:
        """The example inputs with noise as large as they vary: examples are zeros, now and then."""
        generator = torch.Generator().manual_seed(0)
        return tuple(_noisy(x, generator) for x in self.example)

    def batches(self, captured: CapturedModel, data: Any) -> Iterator[tuple[Any, ...]]:
        """Leaves of calibration samples, the example inputs first; labels are left out, and a table has none."""
        yield self.example
        tensors = [at for at, leaf in enumerate(self.example) if isinstance(leaf, Tensor)]
        if data is None or len(tensors) != len(captured.inputs):
            return
        for feeds in first_samples(captured, data, limit=_MOST_ROWS):
            leaves = list(self.example)
            for at, spec in zip(tensors, captured.inputs, strict=True):
                leaves[at] = feeds[spec.name]
            yield tuple(leaves)


def _noisy(x: Any, generator: torch.Generator) -> Any:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.numel() == 0:
        return x
    spread = float(x.std()) if x.numel() > 1 else 0.0
    return x + torch.randn(x.shape, generator=generator).to(x.dtype) * (spread or 1.0)


def tensors_of(result: Any) -> list[Tensor]:
    """Every tensor that a model gave."""
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
