"""Sessions and threads: who waits, who is refused, and when the runtime is freed; odd feeds."""

import os
import signal
import threading
import types
from collections.abc import Mapping

import numpy as np
import pytest

from deploykit.contract.errors import DeviceError, UsageError
from deploykit.contract.session import FunctionSession
from deploykit.contract.tensors import TensorSpec
from deploykit.testing import hammer

INPUTS = (TensorSpec("x", (2, 3), "float32"), TensorSpec("n", (), "int64"))
OUTPUTS = (TensorSpec("y", (2,), "float32"),)
FEEDS = {"x": np.ones((2, 3), np.float32), "n": np.array(2, np.int64)}


class Serial(FunctionSession):
    """Counts how often it was freed, and refuses to be freed while something runs."""

    def __init__(self, function):
        super().__init__(function, INPUTS, OUTPUTS)
        self.inside, self.freed = 0, 0

    def _run(self, feeds):
        assert not self.freed
        self.inside += 1
        try:
            return super()._run(feeds)
        finally:
            self.inside -= 1

    def _close(self):
        assert not self.inside
        self.freed += 1


class Concurrent(Serial):
    concurrent = True


KINDS = pytest.mark.parametrize("kind", [Serial, Concurrent])


def total(feeds):
    return {"y": feeds["x"].sum(1) * np.float32(feeds["n"])}


@KINDS
def test_eight_threads_get_what_one_gets(kind):
    with kind(total) as session:
        found = hammer.hammer(session, hammer.variants(FEEDS, 8), runs=200)
    assert (found.right, found.wrong, found.raised) == (1600, 0, [])


@KINDS
def test_closing_beside_runs_refuses_the_rest(kind):
    session = kind(total)
    found = hammer.hammer(session, hammer.variants(FEEDS, 8), runs=2000, close_after=0.01)
    assert (found.wrong, found.raised, session.freed) == (0, [], 1)
    assert found.right + found.refused == 16000


@KINDS
def test_close_waits_for_a_run_of_another_thread(kind):
    entered, go = threading.Event(), threading.Event()

    def slow(feeds):
        entered.set()
        assert go.wait(10)
        return total(feeds)

    session, results = kind(slow), []
    runner = threading.Thread(target=lambda: results.append(session.run(FEEDS)))
    runner.start()
    assert entered.wait(10)
    closers = [threading.Thread(target=session.close) for _ in range(2)]
    for closer in closers:
        closer.start()
    closers[0].join(0.05)
    assert closers[0].is_alive() and not session.freed
    with pytest.raises(UsageError, match="closed"):  # refused at once, not after the run
        session.run(FEEDS)
    go.set()
    for thread in (runner, *closers):
        thread.join(10)
    assert results[0]["y"].tolist() == [6.0, 6.0] and session.freed == 1


@KINDS
def test_close_inside_a_run_frees_at_its_end(kind):
    def closes(feeds):
        session.close()
        assert not session.freed
        return total(feeds)

    session = kind(closes)
    assert session.run(FEEDS)["y"].tolist() == [6.0, 6.0]
    assert session.freed == 1
    with pytest.raises(UsageError, match="closed"):
        session.op_times(FEEDS, runs=1)


def test_a_run_inside_a_run_is_refused_where_they_would_share_memory():
    def again(feeds):
        return session.run(feeds)

    session = Serial(again)
    with pytest.raises(UsageError, match="inside another"):
        session.run(FEEDS)
    session = Serial(total)
    assert session.run(FEEDS)["y"].tolist() == [6.0, 6.0]


@KINDS
def test_a_run_that_raises_leaves_the_session_usable(kind):
    broken = iter([True])

    def sometimes(feeds):
        if next(broken, False):
            raise ValueError("once")
        return total(feeds)

    with kind(sometimes) as session:
        with pytest.raises(DeviceError, match="once"):
            session.run(FEEDS)
        assert session.run(FEEDS)["y"].tolist() == [6.0, 6.0]
    assert session.freed == 1


@KINDS
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_copy_is_refused_and_frees_nothing(kind):
    entered, go = threading.Event(), threading.Event()

    def slow(feeds):
        entered.set()
        go.wait(10)
        return total(feeds)

    session = kind(slow)
    runner = threading.Thread(target=session.run, args=(FEEDS,))
    runner.start()
    assert entered.wait(10)
    child = os.fork()  # while another thread has the turn
    if not child:
        code = 1
        try:
            signal.alarm(20)
            try:
                session.run(FEEDS)
            except UsageError as error:
                code = 0 if "forked" in str(error) else 2
            session.close()
            code = code or session.freed
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    go.set()
    runner.join(10)
    session.close()
    assert session.freed == 1


class Odd(Mapping):
    """A mapping whose values come from a function."""

    def __init__(self, value, names=("x", "n")):
        self.value, self.names, self.reads = value, names, 0

    def __getitem__(self, name):
        self.reads += 1
        return self.value(name)

    def __iter__(self):
        return iter(self.names)

    def __len__(self):
        return 2


def _raise(error):
    raise error


def _endless():
    return iter(object, None)


class _Endless(Odd):
    def __iter__(self):
        return _endless()


@pytest.mark.parametrize(
    "feeds",
    [
        Odd(lambda name: _raise(KeyError(name))),
        Odd(lambda name: _raise(RuntimeError("no"))),
        Odd(lambda name: _raise(RecursionError("deep"))),
        Odd(lambda name: FEEDS),
        Odd(FEEDS.get, names=(["unhashable"],)),
        _Endless(lambda name: 1),
        {**FEEDS, 3: FEEDS["x"], None: FEEDS["x"]},
        {**FEEDS, "x": np.ma.masked_array(FEEDS["x"], mask=True)},
        {**FEEDS, "x": FEEDS["x"].astype(">f4")},
        {**FEEDS, "x": FEEDS["x"].astype(object)},
        {**FEEDS, "x": np.zeros((2, 3), [("a", "<f4")])},
        {**FEEDS, "n": np.int64(2)},
        {**FEEDS, "n": np.array([2])},
        types.SimpleNamespace(**FEEDS),
    ],
)
def test_an_odd_feed_is_refused_in_words(feeds):
    with Serial(total) as session, pytest.raises(UsageError):
        session.run(feeds)


def test_every_value_is_read_once():
    feeds = Odd(FEEDS.__getitem__)
    with Serial(total) as session:
        assert session.run(feeds)["y"].tolist() == [6.0, 6.0]
    assert feeds.reads == 2


def test_the_runtime_gets_plain_arrays():
    x = np.arange(12, dtype=np.float32).reshape(2, 6)[:, ::2]
    read_only = np.array(FEEDS["n"])
    read_only.flags.writeable = False
    packed = np.zeros(2, np.dtype([("pad", "u1"), ("x", "<f4", (3,))]))["x"]

    def kept(feeds):
        got.update(feeds)
        return total(feeds)

    for given in (x, packed, np.asfortranarray(x), x.view(type("Own", (np.ndarray,), {}))):
        got = {}
        with Serial(kept) as session:
            session.run({"x": given, "n": read_only})
        for array in got.values():
            assert type(array) is np.ndarray and array.flags.carray
        np.testing.assert_array_equal(got["x"], given)
        assert got["n"].shape == ()


def test_counts_of_runs_are_checked():
    with Serial(total) as session:
        for runs in (0, -1, 1.5, "3"):
            with pytest.raises(UsageError, match="runs"):
                session.op_times(FEEDS, runs=runs)
