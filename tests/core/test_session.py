"""`Session`: what `run` refuses, and what closing means."""

import numpy as np
import pytest

from deploykit.contract.errors import DeviceError, UsageError
from deploykit.contract.session import FunctionSession
from deploykit.contract.tensors import TensorSpec

INPUTS = (TensorSpec("image", ("batch", 3), "float32"), TensorSpec("count", (), "int64"))
OUTPUTS = (TensorSpec("output", ("batch",), "float32"),)


@pytest.fixture
def session():
    return FunctionSession(lambda feeds: {"output": feeds["image"].sum(1) * feeds["count"]}, INPUTS, OUTPUTS, threads=3)


@pytest.fixture
def feeds():
    return {"image": np.ones((2, 3), np.float32), "count": np.array(2, np.int64)}


def test_what_a_runtime_raises_is_said_in_our_words():
    """Runtimes have exceptions of their own; what is ours passes as it is."""

    def broken(feeds):
        raise RuntimeError("indices element out of data bounds, idx=10")

    spec = TensorSpec("x", (2,), "float32")
    with FunctionSession(broken, (spec,), (spec,)) as session:
        with pytest.raises(DeviceError, match="failed on these inputs: indices element out of data bounds") as caught:
            session.run({"x": np.zeros(2, np.float32)})
        assert isinstance(caught.value.__cause__, RuntimeError) and "indices" in (caught.value.hint or "")


def test_runs_and_tells_what_it_takes(session, feeds):
    np.testing.assert_array_equal(session.run(feeds)["output"], [6.0, 6.0])
    assert (session.inputs, session.outputs, session.threads) == (INPUTS, OUTPUTS, 3)


def test_a_dynamic_axis_takes_any_size(session, feeds):
    for rows in (1, 5):
        assert session.run({**feeds, "image": np.zeros((rows, 3), np.float32)})["output"].shape == (rows,)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": np.ones((2, 3))}, ["'image'", "float64", "float32[batch, 3]", ".astype"]),
        ({"image": np.ones((2, 4), np.float32)}, ["'image'", "shape", "float32[batch, 3]", "float32[2, 4]"]),
        ({"image": np.ones(3, np.float32)}, ["'image'", "shape", "float32[3]"]),
        ({"image": [[1.0, 2.0, 3.0]]}, ["'image'", "list", "not a NumPy array"]),
        ({"count": 2}, ["'count'", "int", "not a NumPy array"]),
        ({"extra": np.ones(1)}, ["unknown ['extra']", "image: float32[batch, 3]"]),
    ],
)
def test_wrong_feeds_are_refused_by_name(session, feeds, change, words):
    with pytest.raises(UsageError) as caught:
        session.run({**feeds, **change})
    for word in words:
        assert word in str(caught.value)


def test_a_missing_input_is_named(session, feeds):
    with pytest.raises(UsageError, match=r"missing \['count'\]"):
        session.run({"image": feeds["image"]})


def test_a_closed_session_says_so_and_closes_once(feeds):
    closed = []

    class Closing(FunctionSession):
        def _close(self):
            closed.append(1)

    with Closing(dict, INPUTS, OUTPUTS) as session:
        pass
    session.close()
    assert closed == [1]
    with pytest.raises(UsageError, match="closed"):
        session.run(feeds)


def test_closes_when_the_block_fails():
    session = FunctionSession(dict, INPUTS, OUTPUTS)
    with pytest.raises(ZeroDivisionError), session:
        1 / 0  # noqa: B018
    with pytest.raises(UsageError, match="closed"):
        session.run({})


def test_spec_accepts_rank_and_fixed_axes():
    spec = TensorSpec("x", (1, "length"), "int64")
    assert spec.accepts((1, 7)) and not spec.accepts((2, 7)) and not spec.accepts((1,))
    assert str(spec) == "x: int64[1, length]"


def test_op_times_are_empty_where_the_runtime_cannot_tell(session, feeds):
    assert session.op_times(feeds, runs=1) == ()


@pytest.mark.parametrize("feeds", [None, [np.ones((2, 3), np.float32)], np.ones((2, 3), np.float32)])
def test_what_is_no_dict_of_arrays_is_refused(session, feeds):
    with pytest.raises(UsageError, match=r"a dict of arrays by name, not \w+\n.*'image': ndarray, 'count': ndarray"):
        session.run(feeds)
