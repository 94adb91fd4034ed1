"""What `evaluate` may return, and the interval of a fall: figures by hand, and laws."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.contract.errors import UsageError
from deploykit.contract.session import FunctionSession, OpTime
from deploykit.contract.tensors import TensorSpec
from deploykit.judge.parity import TaskMetric
from deploykit.judge.scores import BOOTSTRAP, MCNEMAR, Fall, fall_of, scores_of
from deploykit.pipeline.evidence import Task, resolution, task_metric
from deploykit.pipeline.watch import Watch, rows_of


class Score(NamedTuple):
    """Two figures, as many a library's evaluation returns."""

    accuracy: float
    loss: float


@pytest.mark.parametrize(
    "found", [0.5, 1, True, np.float32(0.5), np.bool_(True), np.array(0.25), np.array([[0.25]]), [0.5], Decimal("0.5")]
)
def test_a_number_is_a_metric_without_samples_whatever_holds_it(found: Any) -> None:
    assert scores_of(found).value == (1.0 if found == 1 else 0.25 if isinstance(found, np.ndarray) else 0.5)
    assert scores_of(found).each is None


@pytest.mark.parametrize("found", [[1, 0, 1], [np.bool_(True), False, True], np.array([1.0, 0.0, 1.0])])
def test_a_list_is_a_score_for_each_sample(found: Any) -> None:
    assert scores_of(found).value == pytest.approx(2 / 3) and scores_of(found).each.size == 3


def test_a_tensor_is_read_whatever_its_type_and_with_a_gradient() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    assert scores_of(torch.tensor(0.5, requires_grad=True)).value == 0.5
    assert scores_of(torch.tensor(0.5, dtype=torch.bfloat16)).value == 0.5
    assert scores_of(torch.tensor(True)).value == 1.0
    for found in ([1.0, 0.0], [True, False]):
        assert scores_of(torch.tensor(found, requires_grad=found[0] is not True)).each.tolist() == [1.0, 0.0]
    assert scores_of([torch.tensor(1.0, requires_grad=True), torch.tensor(0.0)]).each.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    "found", [None, "0.5", b"1", [], [[0.5, 1.0]], np.ones((2, 2)), {}, (), [1, [2]], object(), 1j, {1}, iter([1.0])]
)
def test_anything_else_is_refused(found: Any) -> None:
    with pytest.raises(UsageError, match="evaluate= returned") as caught:
        scores_of(found)
    assert "one for each sample" in str(caught.value)


@pytest.mark.parametrize("found", [(0.9, 0.3), (1.0,), (True, False, True), Score(0.9, 0.3)])
def test_a_tuple_is_several_metrics_and_not_samples(found: Any) -> None:
    with pytest.raises(UsageError, match=r"evaluate= returned (\(|Score)") as caught:
        scores_of(found)
    assert "`return accuracy`" in str(caught.value) and "a list or an array" in str(caught.value)


def test_a_dict_is_refused_with_the_names_in_it() -> None:
    with pytest.raises(UsageError, match="evaluate= returned ") as caught:
        scores_of({"accuracy": 0.9, "loss": 0.3})
    assert "`return found['accuracy']` (there are 'accuracy', 'loss')" in str(caught.value)


class Runs:
    """A metric that runs `batches` batches of four, and returns something."""

    def __init__(self, found: Any, batches: int = 3) -> None:
        self.found, self.batches = found, batches

    def __call__(self, session: Any) -> Any:
        for _ in range(self.batches):
            session.run({"x": np.zeros((4, 2), np.float32)})
        return self.found


@pytest.mark.parametrize(("shape", "least"), [(("n", 2), 12), ((4, 2), 3)])
def test_a_handful_of_numbers_for_more_samples_is_several_metrics(shape: Any, least: int) -> None:
    spec = TensorSpec("x", shape, "float32")
    session = FunctionSession(lambda feeds: {"x": feeds["x"]}, [spec], [spec])
    for found in ([0.3, 0.9], np.array([0.3, 0.9, 0.95])):
        with pytest.raises(UsageError, match="numbers for the 12 samples that it ran") as caught:
            Task(Runs(found), 0.01).measure(session)
        assert "of several metrics the one that may fall" in str(caught.value)
    assert Task(Runs([0.5] * 12), 0.01).measure(session).each.size == 12
    assert Task(Runs([0.3, 0.9], batches=0), 0.01).measure(session).ran == 0, "who runs nothing scored what it knows"
    classes = Task(Runs([0.5, 1.0] * 5), 0.01).measure(session)
    assert classes.ran == least
    said = list(resolution(task_metric(Task(len, 0.5), classes, classes), classes.ran))
    assert [line for line in said if "10 scores for 12 samples" in line] == said[: int(least == 12)]


def test_right_and_wrong_by_disagreement() -> None:
    """10 lost and 2 won of 100: Agresti and Min add half a sample to each cell."""
    reference = scores_of([1] * 10 + [0] * 2 + [1] * 88)
    candidate = scores_of([0] * 10 + [1] * 2 + [1] * 88)
    fall = fall_of(reference, candidate)
    assert fall is not None and fall.method == MCNEMAR and fall.samples == 100
    middle, spread = 8 / 102, 1.959964 * math.sqrt(13 - 64 / 102) / 102
    assert (fall.low, fall.high) == pytest.approx((middle - spread, middle + spread))
    assert fall.p_value == pytest.approx(2 * (1 + 12 + 66) / 2**12)  # two-sided binomial, 12 coins, 2 heads or fewer


def test_no_disagreement_on_597_images_does_not_resolve_a_tenth_of_a_percent() -> None:
    same = scores_of(np.ones(597))
    fall = fall_of(same, same)
    assert fall is not None and fall.low == -fall.high and fall.high > 0.003 and fall.resolves > 0.001
    assert fall.p_value == 1.0
    assert "McNemar, 597 samples" in TaskMetric(1.0, 1.0, 0.001, fall).described


def test_other_scores_are_drawn_again() -> None:
    generator = np.random.default_rng(3)
    reference = scores_of(generator.random(400))
    noise = generator.normal(0.05, 0.1, 400)
    fall = fall_of(reference, scores_of(reference.each - noise))
    assert fall is not None and fall.method == BOOTSTRAP and fall.p_value is None
    deviation = noise.std() / math.sqrt(400)  # the mean's, by the central limit
    assert (fall.low, fall.high) == pytest.approx(
        (noise.mean() - 1.96 * deviation, noise.mean() + 1.96 * deviation), abs=0.002
    )
    assert fall == fall_of(reference, scores_of(reference.each - noise))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_swapping_the_models_turns_the_interval_round(pairs: list[tuple[bool, bool]]) -> None:
    one, other = scores_of([a for a, _ in pairs]), scores_of([b for _, b in pairs])
    there, back = fall_of(one, other), fall_of(other, one)
    assert isinstance(there, Fall) and isinstance(back, Fall)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert there.low <= one.value - other.value <= there.high and 0.0 < there.p_value <= 1.0


def test_what_is_not_paired_has_no_interval() -> None:
    assert fall_of(scores_of(0.5), scores_of([0.5])) is None
    assert fall_of(scores_of([0.5, np.nan]), scores_of([0.5, 0.5])) is None
    with pytest.raises(UsageError, match="3 scores for the float model and 2 for another"):
        fall_of(scores_of([1, 2, 3]), scores_of([1, 2]))


class Run:
    """What `Watch` reads of a calibration."""

    def __init__(self, rows: np.ndarray, seen: int) -> None:
        torch = pytest.importorskip("torch", reason="PyTorch is not installed")
        self.samples = [{"x": torch.from_numpy(row[None])} for row in rows]
        self.table = type("Table", (), {"samples": seen})()


def test_samples_are_told_by_their_bytes_whatever_their_batch() -> None:
    rows = np.random.default_rng(0).random((8, 4), dtype=np.float32)
    assert len({*rows_of({"x": rows}), *rows_of({"x": rows[:3]}), *rows_of({"x": rows[4:]})}) == 8
    assert len(list(rows_of({"x": rows, "state": np.zeros(3)}))) == 1
    spec = TensorSpec("x", ("n", 4), "float32")
    session = FunctionSession(lambda feeds: {"x": feeds["x"]}, [spec], [spec])
    for batch, share in ((rows, 0.5), (rows[:4], 1.0), (rows[4:], 0.0)):
        watch = Watch(Run(rows[:4], seen=4))
        np.testing.assert_array_equal(watch.over(session).run({"x": batch})["x"], batch)
        assert watch.seen == share and bool(list(watch.remarks)) is bool(share)
    many = Watch(Run(rows[:4], seen=400))  # of 400 calibration samples four are known, and all of these are met
    many.over(session).run({"x": rows})
    assert many.seen == 1.0
    assert Watch(None).over(session) is session


def test_what_evaluate_measures_of_a_session_is_that_of_the_artifact() -> None:
    class Timed(FunctionSession):
        peak_memory_bytes = 7

        def times_ms(self, feeds: Any, *, runs: int) -> list[float]:
            return [0.5] * runs

        def _op_times(self, feeds: Any, runs: int) -> tuple[OpTime, ...]:
            return (OpTime("conv", "Conv", "", 0.25),)

    spec = TensorSpec("x", (1, 2), "float32")
    feeds = {"x": np.zeros((1, 2), np.float32)}
    timed = Timed(lambda fed: {"x": fed["x"]}, (spec,), (spec,), threads=2)
    found: list[Any] = []

    def evaluate(session: Any) -> float:
        found.extend((session.times_ms(feeds, runs=2), session.op_times(feeds, runs=1), session.peak_memory_bytes))
        found.extend((session.threads, session.inputs))
        return float(session.run(feeds)["x"].sum())

    assert Task(evaluate, 0.1).measure(timed).ran == 1
    assert found == [[0.5, 0.5], timed.op_times(feeds, runs=1), 7, 2, (spec,)]
