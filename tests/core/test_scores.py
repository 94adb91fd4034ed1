"""What `evaluate` may return, and the interval of a fall: figures by hand, and laws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.contract.errors import UsageError
from deploykit.contract.session import FunctionSession
from deploykit.contract.tensors import TensorSpec
from deploykit.judge.parity import TaskMetric
from deploykit.judge.scores import BOOTSTRAP, MCNEMAR, Fall, fall_of, scores_of
from deploykit.pipeline.watch import Watch, rows_of


@pytest.mark.parametrize("found", [0.5, 1, True, np.float32(0.5), np.array(0.25)])
def test_a_number_is_a_metric_without_samples(found: Any) -> None:
    assert scores_of(found).value == float(found) and scores_of(found).each is None


@pytest.mark.parametrize("found", [[1, 0, 1], (True, False, True), np.array([1.0, 0.0, 1.0])])
def test_a_list_is_a_score_for_each_sample(found: Any) -> None:
    assert scores_of(found).value == pytest.approx(2 / 3) and scores_of(found).each.size == 3


def test_a_tensor_that_has_a_gradient_is_one_like_any_other() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    assert scores_of(torch.tensor(0.5, requires_grad=True)).value == 0.5
    assert scores_of(torch.tensor([1.0, 0.0], requires_grad=True)).each.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("found", [None, "0.5", [], [[0.5]], {"a": 1}, [1, [2]], object()])
def test_anything_else_is_refused(found: Any) -> None:
    with pytest.raises(UsageError, match="evaluate= returned") as caught:
        scores_of(found)
    assert "one for each sample" in str(caught.value)


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


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
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
