"""Figures for Prometheus: what came, how long it took and where, what waited, what was refused and why.

One registry for each server, so that two in one process do not mix. What a request touches is looked up once for each
model; a request then costs a few additions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit.contract.optional import require

if TYPE_CHECKING:
    from deploykit_serving.models import Model
    from deploykit_serving.monitor.reading import Snapshot

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_DECIBELS = (0, 10, 20, 25, 30, 35, 40, 50, 60, 80, 100)
_LABELS = ("model", "version")


@dataclass(frozen=True, eq=False)
class ModelFigures:
    """What a model's requests and runs are added to."""

    request_s: Any
    queue_s: Any
    run_s: Any
    batch: Any
    answered: Any

    def batch_ran(self, rows: int, seconds: float) -> None:
        """A run of `rows` rows took `seconds`; see `deploykit_serving.batcher.Watcher`."""
        self.batch.observe(rows)
        self.run_s.observe(seconds)

    def answered_in(self, seconds: float, queued_s: float) -> None:
        """A request was answered `seconds` after its arrival, of which it waited `queued_s` for its run."""
        self.answered.inc()
        self.request_s.observe(seconds)
        self.queue_s.observe(queued_s)


class Metrics:
    """All figures of a server.

    Raises:
        MissingDependencyError: prometheus_client is not installed.
    """

    def __init__(self) -> None:
        client = require("prometheus_client", extra="serve", purpose="serve artifacts")
        self._client = client
        self._registry = client.CollectorRegistry()
        self._kept: dict[tuple[str, str], ModelFigures] = {}
        self._request_s = self._histogram("request_seconds", "From arrival to answer, of answered requests", _SECONDS)
        self._queue_s = self._histogram("queue_seconds", "From arrival to the begin of the run", _SECONDS)
        self._run_s = self._histogram("run_seconds", "Of a run of the session", _SECONDS)
        self._batch = self._histogram("batch_rows", "Rows in a run", _ROWS)
        self._answered = self._counter("requests_answered", "Requests with an answer", _LABELS)
        self._refused = self._counter("requests_refused", "Requests without one, by reason and status",
                                      ("reason", "status"))  # fmt: skip
        self._loads = self._counter("models_loaded", "Artifacts that began to serve or were refused",
                                    (*_LABELS, "outcome"))  # fmt: skip
        self.drift_db = self._histogram("drift_sqnr_db", "SQNR of sampled answers against the baseline", _DECIBELS)
        self.drift_top1 = self._counter("drift_top1", "Rows of sampled answers, by whether the largest class is the "
                                        "baseline's", (*_LABELS, "same"))  # fmt: skip
        self.drift_skipped = self._counter("drift_skipped", "Sampled answers that were not compared: the one before "
                                           "was still being compared, or the baseline failed", _LABELS)  # fmt: skip

    def of(self, model: str, version: str) -> ModelFigures:
        """The figures of a model."""
        key = (model, version)
        if key not in self._kept:
            each = (self._request_s, self._queue_s, self._run_s, self._batch, self._answered)
            self._kept[key] = ModelFigures(*(figure.labels(*key) for figure in each))
        return self._kept[key]

    def refused(self, reason: str, status: int) -> None:
        """A request was not answered."""
        self._refused.labels(reason, str(status)).inc()

    def loaded(self, model: str, version: str, outcome: str) -> None:
        """An artifact was taken or refused."""
        self._loads.labels(model, version, outcome).inc()

    def watch(self, models: Callable[[], Iterable[Model]], snapshot: Callable[[], Snapshot]) -> None:
        """Tell of the queues and of the machine whenever the figures are read."""
        from prometheus_client import metrics_core

        self._registry.register(_Live(metrics_core, models, snapshot))

    def text(self) -> tuple[bytes, str]:
        """All figures in Prometheus' text format, and its content type."""
        text: bytes = self._client.generate_latest(self._registry)
        return text, str(self._client.CONTENT_TYPE_LATEST)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Any:
        return self._client.Histogram(f"deploykit_{name}", help_text, _LABELS, buckets=buckets,
                                      registry=self._registry)  # fmt: skip

    def _counter(self, name: str, help_text: str, labels: tuple[str, ...]) -> Any:
        return self._client.Counter(f"deploykit_{name}", help_text, labels, registry=self._registry)


class _Live:
    """What is asked for when the figures are read, and is never a figure of the past."""

    def __init__(self, core: Any, models: Callable[[], Iterable[Model]], snapshot: Callable[[], Snapshot]) -> None:
        self._core = core
        self._models = models
        self._snapshot = snapshot

    def collect(self) -> Iterator[Any]:
        """See `prometheus_client.registry.Collector`."""
        yield from self._queues()
        yield from self._machine()

    def describe(self) -> Iterator[Any]:
        """Nothing: names are known only from what the machine has."""
        yield from ()

    def _queues(self) -> Iterator[Any]:
        gauge = self._core.GaugeMetricFamily
        waiting = gauge("deploykit_queue_rows", "Rows that wait", labels=_LABELS)
        peak = gauge("deploykit_queue_rows_peak", "The most rows that ever waited", labels=_LABELS)
        bound = gauge("deploykit_queue_rows_bound", "Rows that may wait", labels=_LABELS)
        for model in self._models():
            labels = (model.served.name, model.served.version)
            waiting.add_metric(labels, model.batcher.waiting_rows)
            peak.add_metric(labels, model.batcher.peak_rows)
            bound.add_metric(labels, model.batcher.max_queue)
        yield from (waiting, peak, bound)

    def _machine(self) -> Iterator[Any]:
        found = self._snapshot()
        families: dict[str, Any] = {}
        for reading in found.readings:
            name = f"deploykit_{reading.metric}"
            family = families.get(name)
            if family is None:
                kind = self._core.CounterMetricFamily if reading.counts else self._core.GaugeMetricFamily
                family = families[name] = kind(name, reading.help, labels=("of", "source"))
            family.add_metric((reading.of, reading.source), reading.value)
        yield from families.values()
        absent = self._core.GaugeMetricFamily(
            "deploykit_source_absent", "Sources of figures that are not here, and why", labels=("source", "reason")
        )
        for each in found.absent:
            absent.add_metric((each.source, each.reason), 1)
        yield absent
