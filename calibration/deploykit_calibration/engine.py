"""How the batches of a calibration pass are computed: in which precision, and on how many threads.

Threads work on different batches, one thread each, instead of sharing every op: there is nothing to wait for between
ops, which on a busy machine is several times faster, and statistics merge exactly, so that the result does not depend
on which thread took which batch.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import reduce
from threading import Lock, local
from types import TracebackType
from typing import TYPE_CHECKING

import torch

from deploykit_calibration.batching import Batch
from deploykit_calibration.execution import CONVOLUTIONS, Executor
from deploykit_calibration.observer import Extremes, Observer, agree
from deploykit_calibration.table import CalibrationTable

if TYPE_CHECKING:
    from deploykit.capture.model import CapturedModel

MOST_WORKERS = 8  # each has the activations of one batch in memory


class Engine(AbstractContextManager["Engine"]):
    """Runs batches, showing every value to an observer.

    The first batch runs in float32. Where the model suits bfloat16 it also runs in that, and if both give the same
    ranges, the other batches run in bfloat16. Leaving the context ends the threads; nothing is computed after.
    """

    def __init__(self, captured: CapturedModel, seed: int) -> None:
        self._captured, self._seed = captured, seed
        self._executor = Executor(captured)
        self._observers: list[Observer] = []
        self._mine = local()
        self._lock = Lock()
        self._number = 0
        self._first: Batch | None = None
        self._threads = torch.get_num_threads()
        workers = min(self._threads, MOST_WORKERS)
        self._share = max(self._threads // workers, 1)
        self._pool = ThreadPoolExecutor(
            workers, "calibrate", initializer=torch.set_num_threads, initargs=(self._share,)
        )
        self._running: deque[Future[None]] = deque()
        self._most_running = workers + 1  # one more is ready for the worker that ends first

    def run(self, batch: Batch) -> None:
        """Run a batch soon; it must not change until then.

        Raises:
            CalibrationError: an activation of a batch before it is not finite.
        """
        if self._number == 0:
            self._first = batch  # waits: how to compute the others is found out when there are others
        else:
            self._begin_with_first(compare=True)
            while len(self._running) >= self._most_running:
                self._running.popleft().result()
            self._running.append(self._pool.submit(self._observe, self._executor, batch, self._number))
        self._number += 1

    def finish(self) -> CalibrationTable:
        """Wait for all batches; statistics by node name, in a table that knows only its model.

        Raises:
            CalibrationError: an activation is not finite; of several faulty batches, the first is told.
        """
        self._begin_with_first(compare=False)
        while self._running:
            self._running.popleft().result()
        empty = CalibrationTable(self._captured.fingerprint)
        parts = (
            CalibrationTable(empty.model_fingerprint, statistics=o.statistics(), layer_inputs=o.layer_inputs())
            for o in self._observers
        )
        return reduce(CalibrationTable.merge, parts, empty)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        # Workers set the number of threads for themselves, and thereby for threads that begin later.
        torch.set_num_threads(self._threads)

    def _observe(self, executor: Executor, batch: Batch, number: int) -> None:
        observer: Observer | None = getattr(self._mine, "observer", None)
        if observer is None:
            observer = self._mine.observer = Observer(self._captured, self._seed)
            with self._lock:
                self._observers.append(observer)
        means = number == 0 or not batch.repeats
        observer.begin(str(batch), number, batch.rows, length=batch.length, means=means)
        executor.run(batch.feeds, observer.see)

    def _begin_with_first(self, *, compare: bool) -> None:
        """Run the first batch, if that is still to be done; beside it in bfloat16, to see if the others can run so."""
        if self._first is None:
            return
        first, self._first = self._first, None
        compared = None
        if compare and native_bfloat16() and suits_bfloat16(self._captured):
            compared = self._pool.submit(self._in_bfloat16, first)
        self._pool.submit(self._observe, self._executor, first, 0).result()
        candidate, found = compared.result() if compared else (None, {})
        statistics = self._observers[0].statistics()
        if candidate and agree({name: (s.minimum, s.maximum) for name, s in statistics.items()}, found):
            self._executor = candidate

    def _in_bfloat16(self, batch: Batch) -> tuple[Executor | None, dict[str, tuple[float, float]]]:
        try:
            executor, extremes = Executor(self._captured, torch.bfloat16), Extremes(self._captured)
            executor.run(batch.feeds, extremes.see)
        except (RuntimeError, NotImplementedError):  # an op without a bfloat16 kernel
            return None, {}
        return executor, extremes.found


def native_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32."""
    supports = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(supported() for supported in supports if supported is not None)


def suits_bfloat16(captured: CapturedModel) -> bool:
    """Convolutional networks with floating inputs. Others gain little, or carry integers and states through."""
    nodes = list(captured.graph_module.graph.nodes)
    floating = all(x.is_floating_point() for x in captured.example_inputs)
    recurrent = any(word in str(node.target) for node in nodes for word in ("lstm", "gru", "rnn", "embedding"))
    return floating and not recurrent and any(node.target in CONVOLUTIONS for node in nodes)
