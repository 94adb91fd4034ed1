"""`calibrate`: one streaming pass of the data through a captured model, to a `CalibrationTable`.

Memory does not grow with the number of samples. The pass runs in bfloat16 where the CPU multiplies it natively and
the first batch proves that the ranges come out the same as in float32. An interrupt leaves no file behind.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.contract.arguments import path
from deploykit.contract.progress import Advance
from deploykit_calibration.batching import Batch, DataDigest
from deploykit_calibration.cache import TableCache
from deploykit_calibration.data import CalibrationData, open_data
from deploykit_calibration.data_flow import read_by_products
from deploykit_calibration.engine import Engine
from deploykit_calibration.held_out import Holdout
from deploykit_calibration.reuse import once, told_by
from deploykit_calibration.sampling import SAMPLE_SIZE
from deploykit_calibration.statistics import BINS
from deploykit_calibration.table import SUFFIX, CalibrationTable, is_table_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from deploykit.capture.model import CapturedModel

    Seen = Callable[[Batch], None]

KEPT_SAMPLES = 32
KEPT_BYTES = 64 << 20


@dataclass(frozen=True)
class CalibrationRun:
    """What a pass over calibration data gives.

    Attributes:
        table: the statistics.
        samples: feeds by input name that `CapturedModel.run` takes, of what was observed, from the beginning: up to
            KEPT_SAMPLES samples and KEPT_BYTES; empty where the data was a finished table. Never saved.
        held_out: the same of what was not observed, where some was to be held back.
    """

    table: CalibrationTable
    samples: list[dict[str, Tensor]] = field(default_factory=list)
    held_out: list[dict[str, Tensor]] = field(default_factory=list)

    @property
    def judged(self) -> list[dict[str, Tensor]]:
        """Samples to judge on: those that neither ranges nor algorithms saw, where some were held back."""
        return self.held_out or self.samples


def calibrate(
    captured: CapturedModel,
    data: Any,
    *,
    progress: bool | Advance = True,
    limit: int | None = None,
    cache_dir: str | Path | None = None,
    extend: CalibrationTable | None = None,
    seed: int = 0,
) -> CalibrationTable:
    """Observe a captured model over calibration data.

    Args:
        data: batches in any form of `deploykit_calibration.data`, "synthetic", a finished table or its file, or a
            `CalibrationRun`.
        progress: show a progress bar, on a terminal only; or a function that is told how many batches of how many
            (None: not known) are done.
        limit: use at most this many samples.
        cache_dir: look for, and keep, the table of this model, data and seed in this folder.
        extend: an older table of this model, whose samples are added.
        seed: the seed of the positions that histograms sample, and of synthetic data.

    Raises:
        CalibrationError: the data is empty, malformed or not finite, or a table is of another model.
        UsageError: the data or the limit is of no known form.
    """
    if extend is not None:
        extend.check_model(captured.fingerprint)
    run = run_calibration(captured, data, progress=progress, limit=limit, cache_dir=cache_dir, seed=seed)
    table = with_steps(captured, run)
    return table if extend is None else extend.merge(table)


def run_calibration(
    captured: CapturedModel,
    data: Any,
    *,
    progress: bool | Advance = True,
    limit: int | None = None,
    cache_dir: str | Path | None = None,
    seed: int = 0,
    hold_out: bool = False,
) -> CalibrationRun:
    """Do as `calibrate` does, and hand back some of the samples, for comparing the float model with what is made of it.

    Args:
        hold_out: do not observe some of the samples, and hand these back apart (`held_out`).
    """
    finished = _finished(captured, data)
    if finished is not None:
        return finished
    opened = open_data(captured, data, limit=limit, seed=seed)
    cache = _cache_of(captured, cache_dir, seed)
    return _from_cache(captured, opened, cache, hold_out=hold_out) or _kept(
        captured, opened, cache, seed=seed, progress=progress, hold_out=hold_out
    )


def with_steps(captured: CapturedModel, run: CalibrationRun) -> CalibrationTable:
    """The table of a run with statistics of the steps of recurrent layers, taken from the kept samples.

    A table that is handed on has no samples: without these, no target that writes recurrent layers out could use it.
    It costs a run of the kept samples, and a row for each product that a step has: up to `MOST_STEPS` steps, which is
    as many as those targets write out.
    """
    from deploykit.capture.recurrent import MOST_STEPS, OF_THIS_GRAPH, steps_of, unroll_recurrent
    from deploykit.capture.recurrent_cells import RECURRENT

    layers = [node for node in captured.graph_module.graph.nodes if node.target in RECURRENT]
    if not layers or not run.samples or sum(map(steps_of, layers)) > MOST_STEPS:
        return run.table
    unrolled = unroll_recurrent(captured)
    found, table = extended(run, unrolled), run.table
    read = {name for name in read_by_products(unrolled.graph_module.graph) if not name.endswith(OF_THIS_GRAPH)}
    statistics = {name: kept for name, kept in found.statistics.items() if name in read}
    sums = {name: kept for name, kept in found.layer_inputs.items() if not name.endswith(OF_THIS_GRAPH)}
    return replace(table, statistics={**statistics, **table.statistics}, layer_inputs={**sums, **table.layer_inputs})


def extended(run: CalibrationRun, adapted: CapturedModel) -> CalibrationTable:
    """The table of a run with statistics of what a target's form of the model adds, taken from the kept samples.

    Args:
        adapted: nodes that are known by their captured names keep their statistics.
    Returns:
        The table itself where nothing was kept: what is new has no statistics then, and stays float.
    """
    table = run.table
    if not run.samples:
        return table

    def observe() -> CalibrationTable:
        observed = _observed(adapted, open_data(adapted, run.samples), seed=0, progress=False, hold_out=False).table
        return replace(
            table,
            statistics={**observed.statistics, **table.statistics},
            layer_inputs={**observed.layer_inputs, **table.layer_inputs},
        )

    return once("extended", (adapted.fingerprint, id(run), told_by(run.samples)), observe, held=run)


def first_samples(captured: CapturedModel, data: Any, *, limit: int) -> list[dict[str, Tensor]]:
    """The first samples of calibration data, in a form that the captured model runs, without observing anything.

    Args:
        limit: at most so many; `KEPT_SAMPLES` and `KEPT_BYTES` hold too. Data that has fewer is no error.
    Returns:
        Feeds by input name; empty where `data` is a finished table, which keeps none.
    Raises:
        CalibrationError, UsageError: as `calibrate`.
    """
    finished = _finished(captured, data)
    if finished is not None:
        return [*finished.held_out, *finished.samples][:limit]
    keeper = _SampleKeeper(captured)
    for batch in open_data(captured, data).stream(captured):
        keeper.see(batch)
        if keeper.rows >= limit:
            break
    return keeper.samples[:limit]


def _finished(captured: CapturedModel, data: Any) -> CalibrationRun | None:
    """Data that is a calibration already, a table, or the file of one, checked against the model."""
    if isinstance(data, str | Path):
        path = Path(data)
        if path.suffix == SUFFIX or (path.is_file() and is_table_file(path)):
            data = CalibrationTable.load(path)
    if isinstance(data, CalibrationTable):
        data = CalibrationRun(data)
    if not isinstance(data, CalibrationRun):
        return None
    data.table.check_model(captured.fingerprint)
    return data


def _cache_of(captured: CapturedModel, folder: str | Path | None, seed: int) -> TableCache | None:
    if folder is None:
        return None
    return TableCache(
        path("cache_dir", folder), captured.fingerprint, f"v3 seed={seed} sample={SAMPLE_SIZE} bins={BINS}"
    )


def _from_cache(
    captured: CapturedModel, data: CalibrationData, cache: TableCache | None, *, hold_out: bool
) -> CalibrationRun | None:
    """Find the table by the data alone. A one-shot iterator would be used up by looking, so it is not looked up."""
    if cache is None or data.one_shot or not cache.may_hold_any():
        return None
    digest, keeper, holdout = DataDigest(), _SampleKeeper(captured), Holdout(captured) if hold_out else None
    for batch in data.stream(captured, digest, holdout):
        keeper.see(batch)
    table = cache.find(digest.hexdigest())
    return None if table is None else CalibrationRun(table, keeper.samples, _held(captured, holdout))


def _kept(
    captured: CapturedModel,
    data: CalibrationData,
    cache: TableCache | None,
    *,
    seed: int,
    progress: bool | Advance,
    hold_out: bool,
) -> CalibrationRun:
    """The pass, and its table in the cache where there is one."""
    if cache is not None:
        cache.prepare()
    run = _observed(captured, data, seed=seed, progress=progress, hold_out=hold_out)
    if cache is not None:
        cache.keep(run.table)
    return run


def _observed(
    captured: CapturedModel, data: CalibrationData, *, seed: int, progress: bool | Advance, hold_out: bool
) -> CalibrationRun:
    """The pass itself."""
    digest, keeper, holdout = DataDigest(), _SampleKeeper(captured), Holdout(captured) if hold_out else None
    samples = 0
    with Engine(captured, seed) as engine, _progress(data.length, shown=progress) as advance:
        for batch in data.stream(captured, digest, holdout):
            keeper.see(batch)
            engine.run(batch)
            samples += batch.rows
            advance(batch)
        observed = engine.finish()
    table = replace(observed, data_fingerprint=digest.hexdigest(), samples=samples, source=data.source)
    return CalibrationRun(table, keeper.samples, _held(captured, holdout))


def _held(captured: CapturedModel, holdout: Holdout | None) -> list[dict[str, Tensor]]:
    """What was held back, in a form that the captured model runs."""
    keeper = _SampleKeeper(captured)
    for batch in holdout.batches() if holdout is not None else ():
        keeper.see(batch)
    return keeper.samples


class _SampleKeeper:
    """Copies of the first samples, in a form that the captured model runs; `rows` counts them."""

    def __init__(self, captured: CapturedModel) -> None:
        self._single = all(spec.shape and isinstance(spec.shape[0], str) for spec in captured.inputs)
        self.rows = self._bytes = 0
        self.samples: list[dict[str, Tensor]] = []

    def see(self, batch: Batch) -> None:
        """Keep the samples of a batch if there is room: one by one where the graph takes any number."""
        pieces = range(batch.rows) if self._single else (None,)
        for row in pieces:
            kept = {name: x if row is None else x[row : row + 1] for name, x in batch.feeds.items()}
            size = sum(x.numel() * x.element_size() for x in kept.values())
            rows = 1 if self._single else batch.rows
            if self.samples and (self.rows + rows > KEPT_SAMPLES or self._bytes + size > KEPT_BYTES):
                self.rows = KEPT_SAMPLES  # full: later samples are not kept either
                return
            self.samples.append({name: x.clone() for name, x in kept.items()})
            self.rows += rows
            self._bytes += size


@contextmanager
def _progress(total: int | None, *, shown: bool | Advance) -> Iterator[Seen]:
    """A bar on the terminal's stderr, counting the user's batches; nothing anywhere else."""
    if callable(shown):
        tell = shown
        yield lambda batch: tell(batch.last + 1, total)
        return
    if not shown or not sys.stderr.isatty():
        yield lambda batch: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("calibrating"), BarColumn(), MofNCompleteColumn(), TextColumn("batches"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("calibrating", total=total)
        yield lambda batch: bar.update(task, completed=batch.last + 1)
