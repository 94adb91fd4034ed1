"""Are the rows of a batch independent of each other? Shown by running them, before requests share a run.

A scale that is found at run time over a whole batch (dynamic int8), or a statistic over rows, lets one client's values
change another's answer. So the golden rows are run alone and beside neighbours that are large or not numbers, and must
come out as they were, to the tolerance of golden data.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from deploykit.artifact.golden import golden_tolerance
from deploykit.contract.errors import UsageError
from deploykit.contract.session import FunctionSession, Session
from deploykit.contract.tensors import Feeds
from deploykit.judge.parity import compare_sessions, failures_of
from deploykit.plugin.artifact import Artifact

Array = np.ndarray[Any, Any]
_LARGER = 1e3


def _large(array: Array) -> Array:
    """Floats a thousand times as large; whole numbers may be indices, and stay."""
    return array * array.dtype.type(_LARGER) if array.dtype.kind == "f" and array.dtype.itemsize > 2 else array


def _unknown(array: Array) -> Array:
    return np.full_like(array, np.nan) if array.dtype.kind == "f" else array


_NEIGHBOURS: tuple[tuple[str, Callable[[Array], Array]], ...] = (
    ("the same row", lambda array: array),
    ("values a thousand times as large", _large),
    ("NaN", _unknown),
)


def prove_independent_rows(artifact: Artifact, session: Session) -> None:
    """Run golden rows alone and beside others, and compare.

    Raises:
        UsageError: a neighbour changes them; the message says which and by how much.
    """
    tolerance = golden_tolerance(artifact.manifest.precision, artifact.manifest.facts.golden_min_sqnr_db)
    alone = FunctionSession(session.run, session.inputs, session.outputs)
    for what, neighbour in _NEIGHBOURS:
        run = functools.partial(_beside, session, neighbour)
        beside = FunctionSession(run, session.inputs, session.outputs)
        misses = failures_of(compare_sessions(alone, beside, artifact.golden().inputs), tolerance)
        if misses:
            raise UsageError(
                f"the rows of a batch of {artifact.path.name} are not independent: beside a row of {what},"
                f" {'; '.join(misses)}",
                hint="serve it with --max-batch 1: one client's values would change another's answer",
            )


def _beside(session: Session, neighbour: Callable[[Array], Array], feeds: Feeds) -> dict[str, Array]:
    """Outputs of the rows of `feeds`, run behind as many rows of a neighbour."""
    both = {name: np.concatenate([neighbour(array), array]) for name, array in feeds.items()}
    rows = next(iter(feeds.values())).shape[0]
    return {name: array[rows:] for name, array in session.run(both).items()}
