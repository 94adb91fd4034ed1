"""Batches in rows, a queue with a bound, and requests that do not touch each other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from deploykit.contract.errors import DeviceError
from deploykit.contract.session import FunctionSession
from deploykit.contract.tensors import TensorSpec
from deploykit_serving.batcher import Batcher, Closed, NeverFits, Outcome, QueueFull, is_batched

X = TensorSpec("x", ("batch", "length"), "float32")
Y = TensorSpec("y", ("batch",), "float32")


class Runs:
    """Sums rows, remembers the sizes of batches, refuses a batch with a negative value, and can be held."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.go = threading.Event()
        self.go.set()
        self.begun = threading.Event()

    def __call__(self, feeds: Any) -> dict[str, np.ndarray]:
        self.begun.set()
        self.go.wait(30)
        self.sizes.append(len(feeds["x"]))
        if (feeds["x"] < 0).any():
            raise RuntimeError("a negative value")
        return {"y": feeds["x"].sum(1)}


@pytest.fixture
def made() -> Iterator[Callable[..., tuple[Batcher, Runs]]]:
    batchers = []

    def make(instances: int = 1, **how: Any) -> tuple[Batcher, Runs]:
        runs = Runs()
        batcher = Batcher([FunctionSession(runs, (X,), (Y,)) for _ in range(instances)], **how)
        batchers.append((batcher, runs))
        return batcher, runs

    yield make
    for batcher, runs in batchers:
        runs.go.set()
        batcher.close()


def rows(*values: float, length: int = 2) -> dict[str, np.ndarray]:
    return {"x": np.array([[value] * length for value in values], np.float32)}


class Wanted:
    """Collects what `done` is told."""

    def __init__(self) -> None:
        self.outcome: Outcome | None = None
        self._told = threading.Event()
        self.times = 0

    def __call__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.times += 1
        self._told.set()

    def result(self) -> Outcome:
        assert self._told.wait(30) and self.outcome is not None
        return self.outcome

    def values(self) -> list[float]:
        outcome = self.result()
        assert outcome.outputs is not None, outcome.error
        return outcome.outputs["y"].tolist()


def submit(batcher: Batcher, feeds: dict[str, np.ndarray]) -> Wanted:
    wanted = Wanted()
    batcher.submit(feeds, wanted)
    return wanted


def held(made: Any, **how: Any) -> tuple[Batcher, Runs, Wanted]:
    """A batcher whose instance is busy, so that what is submitted waits."""
    batcher, runs = made(**how)
    runs.go.clear()
    first = submit(batcher, rows(0))
    assert runs.begun.wait(30)
    return batcher, runs, first


def test_rows_of_several_requests_share_a_run_and_never_more_than_the_batch(made) -> None:
    batcher, runs, first = held(made, max_batch=4)
    later = [submit(batcher, rows(*values)) for values in ((1, 2), (3,), (4, 5), (6, 7, 8))]
    runs.go.set()
    assert [each.values() for each in later] == [[2, 4], [6], [8, 10], [12, 14, 16]]
    assert first.values() == [0] and runs.sizes == [1, 3, 2, 3]


def test_a_request_of_more_rows_than_a_batch_is_cut_and_joined(made) -> None:
    batcher, runs = made(max_batch=3)
    assert submit(batcher, rows(1, 2, 3, 4, 5, 6, 7)).values() == [2, 4, 6, 8, 10, 12, 14]
    assert runs.sizes == [3, 3, 1]


def test_the_queue_counts_rows_and_never_holds_more_than_its_bound(made) -> None:
    batcher, runs, _ = held(made, max_queue=4)
    submit(batcher, rows(1, 2, 3))
    with pytest.raises(QueueFull):
        batcher.submit(rows(4, 5), print)
    last = submit(batcher, rows(6))
    with pytest.raises(QueueFull):
        batcher.submit(rows(7), print)
    with pytest.raises(NeverFits, match="5 rows"):
        batcher.submit(rows(1, 2, 3, 4, 5), print)
    assert batcher.waiting_rows == 4 == batcher.peak_rows
    runs.go.set()
    assert last.values() == [12]


def test_one_bad_request_fails_alone(made) -> None:
    batcher, runs, _ = held(made, max_batch=8)
    good, bad, other = (submit(batcher, rows(value)) for value in (1, -1, 2))
    runs.go.set()
    assert good.values() == [2] and other.values() == [4]
    assert isinstance(bad.result().error, DeviceError) and bad.times == good.times == 1
    assert submit(batcher, rows(3)).values() == [6]


def test_requests_whose_other_axes_differ_do_not_share_a_run(made) -> None:
    batcher, runs, _ = held(made, max_batch=8)
    short, long, again = submit(batcher, rows(1)), submit(batcher, rows(1, length=5)), submit(batcher, rows(2))
    runs.go.set()
    assert (short.values(), long.values(), again.values()) == ([2], [5], [4])
    assert runs.sizes == [1, 2, 1]


def test_a_row_waits_for_others_no_longer_than_told(made) -> None:
    batcher, runs = made(max_batch=2, wait_s=30.0)
    one = submit(batcher, rows(1))
    time.sleep(0.05)
    assert one.outcome is None
    assert submit(batcher, rows(2)).values() == [4] and one.values() == [2] and runs.sizes == [2]
    quick, _ = made(max_batch=2, wait_s=0.01)
    assert submit(quick, rows(1)).values() == [2]


def test_what_is_abandoned_never_runs_and_leaves_its_room(made) -> None:
    batcher, runs, _ = held(made, max_queue=2)
    wanted = Wanted()
    ticket = batcher.submit(rows(1, 2), wanted)
    batcher.abandon(ticket)
    batcher.abandon(ticket)
    assert batcher.waiting_rows == 0
    after = submit(batcher, rows(3))
    runs.go.set()
    assert after.values() == [6] and wanted.outcome is None and runs.sizes == [1, 1]


def test_closing_answers_what_waits_and_refuses_what_comes(made) -> None:
    batcher, _ = made(max_batch=2, wait_s=600.0)
    waiting = submit(batcher, rows(1))
    batcher.close()
    assert waiting.values() == [2]
    with pytest.raises(Closed):
        batcher.submit(rows(1), print)


def test_a_batch_whose_output_lost_rows_is_run_one_by_one(made) -> None:
    spec = TensorSpec("y", ("n",), "float32")
    session = FunctionSession(lambda feeds: {"y": feeds["x"].sum(1)[:1]}, (X,), (spec,))
    batcher = Batcher([session], max_batch=4, wait_s=0.2)
    found = [submit(batcher, rows(value)) for value in (1, 2)]
    assert [each.values() for each in found] == [[2], [4]]
    batcher.close()


def test_without_a_batch_axis_a_request_is_a_row() -> None:
    fixed = FunctionSession(lambda feeds: {"y": feeds["x"].sum(1)}, (X,), (Y,))
    batcher = Batcher([fixed], max_batch=8, max_queue=2, batched=False)
    assert batcher.rows_of(rows(1, 2, 3)) == 1 and batcher.max_batch == 1
    assert submit(batcher, rows(1, 2, 3)).values() == [2, 4, 6]
    batcher.close()


def test_a_short_run_is_made_on_the_calling_thread_where_nothing_waits(made) -> None:
    batcher, _ = made(max_batch=2)
    assert batcher.run_now(rows(1)) is None, "how long it takes is not known yet"
    for _ in range(50):  # a run may have been held up by the machine
        submit(batcher, rows(1)).values()
    now = batcher.run_now(rows(3, 4))
    if now is not None:
        assert now.outputs is not None and now.outputs["y"].tolist() == [6, 8] and now.batch_rows == 2
    assert batcher.run_now(rows(1, 2, 3)) is None, "more rows than a batch"
    waiting, _ = made(max_batch=2, wait_s=0.01)
    submit(waiting, rows(1)).values()
    assert waiting.run_now(rows(1)) is None, "a row is to wait for others"


def test_rows_of_other_sizes_are_not_run_on_the_calling_thread(made) -> None:
    batcher, _ = made()
    for _ in range(50):
        submit(batcher, rows(1)).values()
    assert batcher.run_now(rows(1, length=3)) is None, "how long those take is not known"


def test_nothing_is_run_on_the_calling_thread_while_another_runs_or_after_the_end(made) -> None:
    batcher, runs = made()
    for _ in range(50):
        submit(batcher, rows(1)).values()
    runs.begun.clear()
    runs.go.clear()
    busy = submit(batcher, rows(1))
    assert runs.begun.wait(30) and batcher.run_now(rows(2)) is None
    runs.go.set()
    busy.values()
    batcher.close()
    assert batcher.run_now(rows(2)) is None


def test_many_threads_get_their_own(made) -> None:
    batcher, runs = made(instances=3, max_batch=4, wait_s=0.001, max_queue=10_000)
    found: dict[int, list[float]] = {}

    def client(number: int) -> None:
        for turn in range(20):
            value = number * 100 + turn
            found[value] = submit(batcher, rows(*[value] * (1 + turn % 3))).values()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {n * 100 + t: [2.0 * (n * 100 + t)] * (1 + t % 3) for n in range(8) for t in range(20)}
    assert max(runs.sizes) <= 4 and batcher.waiting_rows == 0


def test_batches_are_of_one_dynamic_axis() -> None:
    assert is_batched((X,), (Y,))
    assert not is_batched((TensorSpec("x", (1, 2), "float32"),), (TensorSpec("y", (1,), "float32"),))
    assert not is_batched((X, TensorSpec("z", ("other",), "float32")), (Y,))
    assert not is_batched((X,), (TensorSpec("y", (), "float32"),))
