"""`best`: place with several range methods, run each on a few samples, keep the most accurate.

No single method is best for every network. Each candidate is judged by the SQNR of the worst floating output.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from deploykit.contract.decibels import SQNR_CAP_DB
from deploykit.judge.parity import OutputComparison
from deploykit_calibration.algorithms import RANGES, STATISTICS, Algorithm
from deploykit_calibration.graph_view import GraphView

if TYPE_CHECKING:
    from deploykit_calibration.algorithms import Samples
    from deploykit_calibration.prepared import Prepared

CANDIDATES = ("default", "minmax", "mse", "percentile:99.999", "percentile")
"""What is tried; of equals, the first is taken."""
_LEAST_SAMPLES, _MACS = 4, 2e10  # the least that says anything; multiply-accumulates of a second or two


def choose_method(prepared: Prepared, samples: Samples) -> Prepared:
    """The same model with the method that loses least on `samples`, or on the example inputs where there are none."""
    if not prepared.scheme.quantizes:
        return prepared
    judged = list(samples[: affordable_samples(prepared)]) or [prepared.captured.example_feeds()]
    wanted = [prepared.captured.run(feeds) for feeds in judged]
    best, reached, is_in_use = prepared, -math.inf, prepared.is_placed
    for method in CANDIDATES:
        candidate = prepared if method == prepared.method else replace(prepared, method=method)
        figure = worst_sqnr_db(candidate, judged, wanted)
        loser, best = (best, candidate) if figure > reached else (candidate, best)
        reached = max(reached, figure)
        if loser is not best and not (loser is prepared and is_in_use):
            loser.release()
    return best


def affordable_samples(prepared: Prepared) -> int:
    """How many samples each candidate is judged on: all that were kept of a small network, few of a large one."""
    view = GraphView.of(prepared.captured)
    macs = sum(view.macs(op) or 0 for op in view.ops())
    return max(_LEAST_SAMPLES, int(_MACS // max(macs, 1)))


def worst_sqnr_db(candidate: Prepared, samples: Samples, wanted: Samples) -> float:
    """SQNR in dB of the worst floating output over all samples."""
    assert candidate.simulation is not None
    names = [spec.name for spec in candidate.captured.outputs if spec.dtype.startswith("float")]
    comparisons = {name: OutputComparison(name) for name in names}
    for feeds, want in zip(samples, wanted, strict=True):
        got = candidate.simulation.run({name: tensor.numpy() for name, tensor in feeds.items()})
        for name, comparison in comparisons.items():
            comparison.add(want[name].numpy(), got[name])
    figures = (comparison.metrics.sqnr_db for comparison in comparisons.values())
    return min((figure for figure in figures if figure is not None), default=SQNR_CAP_DB)


BEST = Algorithm(
    "best",
    choose_method,
    cost="five placements, each run on samples: seconds",
    needs=frozenset({STATISTICS}),
    is_choice=True,
    acts_on=frozenset({RANGES}),
)
