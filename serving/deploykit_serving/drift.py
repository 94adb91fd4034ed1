"""Parity while serving: a share of the requests is run again on a float baseline, behind everything else.

One thread, one request at a time; what comes while it is busy is counted as skipped, so that it can never hold up or
outgrow the serving. Which requests are compared is drawn from a seeded generator.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from deploykit.contract.errors import UsageError
from deploykit.contract.session import FunctionSession, Session
from deploykit.judge.parity import compare_sessions
from deploykit.plugin.artifact import Artifact
from deploykit_serving.logs import Log
from deploykit_serving.metrics import Metrics
from deploykit_serving.models import Model

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]


class Drift:
    """Compares sampled answers with those of a baseline.

    Args:
        baseline: a float artifact of the same model.
        share: of the requests that are compared, above 0 and at most 1.
        name: the served model that it is the baseline of; None for every one with its inputs and outputs.
    Raises:
        UsageError: `share` is out of its range.
        DeploykitError: the baseline is damaged or cannot be opened.
    """

    def __init__(
        self, baseline: Artifact, share: float, metrics: Metrics, log: Log, *, name: str | None = None
    ) -> None:
        if not 0.0 < share <= 1.0:
            raise UsageError(f"the share of requests to compare must be above 0 and at most 1, not {share:g}")
        baseline.verify()
        self._session: Session = baseline.open(threads=1)
        self._share = share
        self._metrics = metrics
        self._log = log
        self._name = name
        self._draw = random.Random(0)
        self._busy = threading.Lock()
        self._work: tuple[Model, Arrays, Arrays] | None = None
        self._there = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._serve, name="deploykit-drift", daemon=True)
        self._thread.start()

    def fits(self, model: Model) -> bool:
        """Whether the baseline takes what the model takes, and gives what it gives."""
        own = (self._session.inputs, self._session.outputs)
        return self._name in (None, model.served.name) and own == (model.artifact.inputs, model.artifact.outputs)

    def consider(self, model: Model, feeds: Arrays, outputs: Arrays) -> None:
        """Compare this request, if it is drawn and nothing is being compared; returns at once."""
        if self._draw.random() >= self._share or not self.fits(model):
            return
        if not self._busy.acquire(blocking=False):
            self._metrics.drift_skipped.labels(model.served.name, model.served.version).inc()
            return
        self._work = (model, feeds, outputs)
        self._there.set()

    def close(self) -> None:
        """End the thread after what it compares, and close the baseline."""
        self._ended = True
        self._there.set()
        self._thread.join()
        self._session.close()

    def _serve(self) -> None:
        if hasattr(os, "setpriority") and hasattr(os, "PRIO_PROCESS"):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)  # on Linux of this thread alone
        while True:
            self._there.wait()
            if self._ended:
                return
            self._there.clear()
            work, self._work = self._work, None
            try:
                if work is not None:
                    self._compare(*work)
            finally:
                self._busy.release()

    def _compare(self, model: Model, feeds: Arrays, outputs: Arrays) -> None:
        labels = (model.served.name, model.served.version)
        given = FunctionSession(lambda _: outputs, self._session.inputs, self._session.outputs)
        try:
            worst = compare_sessions(self._session, given, [feeds]).worst
        except Exception as error:  # a baseline that fails must not end the thread
            self._metrics.drift_skipped.labels(*labels).inc()
            self._log.event("drift_failed", model=labels[0], version=labels[1], error=str(error)[:500])
            return
        if worst.sqnr_db is not None:
            self._metrics.drift_db.labels(*labels).observe(worst.sqnr_db)
        if worst.top1_agreement is not None:
            rows = model.batcher.rows_of(feeds)
            same = round(worst.top1_agreement * rows)
            self._metrics.drift_top1.labels(*labels, "yes").inc(same)
            self._metrics.drift_top1.labels(*labels, "no").inc(rows - same)
