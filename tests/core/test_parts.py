"""Parts of an output: what one figure would hide is found along any axis, and good models raise no alarm."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.judge.parity import OutputComparison, Tolerance
from deploykit.judge.parts import Part, PartSearch

BOXES, SCORES = 64.0, 0.02


def worst(reference: np.ndarray, noise: np.ndarray, *, batch: bool = False) -> Part | None:
    search = PartSearch(batch)
    search.add(reference.astype(np.float64), noise.astype(np.float64))
    return search.worst


def detector(axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes at 50 dB and scores at 13 dB, beside each other along an axis of three."""
    rng = np.random.default_rng(0)
    shapes = [tuple(n if i == axis else 12 for i in range(3)) for n in (4, 6)]
    parts = [rng.normal(size=shape) * scale for shape, scale in zip(shapes, (BOXES, SCORES), strict=True)]
    noises = [rng.normal(size=p.shape) * s for p, s in zip(parts, (BOXES * 10**-2.5, SCORES * 10**-0.65), strict=True)]
    return np.concatenate(parts, axis), np.concatenate(noises, axis)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_quiet_scores_beside_loud_boxes_are_a_part_of_their_own(axis: int) -> None:
    found = worst(*detector(axis))
    assert found is not None
    assert (found.axis, found.start, found.stop) == (axis, 4, 10)
    assert found.sqnr_db == pytest.approx(13.0, abs=1.0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_scores_between_boxes_and_masks_are_a_part(axis: int) -> None:
    """Two sides that are alike: no single cut explains the levels."""
    boxes, scores = (np.moveaxis(x, axis, 0) for x in detector(axis))
    order = [*range(4), *range(4, 10), *range(4)]
    found = worst(*(np.moveaxis(x[order], 0, axis) for x in (boxes, scores)))
    assert found is not None and (found.axis, found.start, found.stop) == (axis, 4, 10)
    assert found.sqnr_db == pytest.approx(13.0, abs=1.0)


@pytest.mark.parametrize("quiet", [[3], [3, 4], [2, 7]])
def test_quiet_classes_between_others_are_no_part(quiet: list[int]) -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(32, 10))
    reference[:, quiet] *= 0.03
    assert worst(reference, rng.uniform(-1, 1, reference.shape) / 100, batch=True) is None


def test_the_verdict_is_that_of_the_scores_alone() -> None:
    reference, noise = detector(1)
    together, alone = OutputComparison("y", batch=False), OutputComparison("y", batch=False)
    together.add(reference, reference + noise)
    alone.add(reference[:, 4:], (reference + noise)[:, 4:])
    gate = Tolerance(min_sqnr_db=18.0)
    assert together.metrics.sqnr_db > 40.0
    assert gate.misses(together.metrics) and gate.misses(alone.metrics)
    assert "part 4:10 of axis 1" in gate.misses(together.metrics)[0]
    assert not Tolerance(min_sqnr_db=18.0, min_part_sqnr_db=10.0).misses(together.metrics)


def test_flattened_parts_are_found_to_within_a_group_of_neighbours() -> None:
    rng = np.random.default_rng(1)
    reference = np.concatenate([rng.normal(size=40_000) * BOXES, rng.normal(size=60_000) * SCORES])
    noise = np.concatenate([rng.normal(size=40_000) * 0.1, rng.normal(size=60_000) * SCORES / 4])
    found = worst(reference[None], noise[None], batch=True)
    assert found is not None and found.axis == 1
    assert abs(found.start - 40_000) <= 100_000 // 4096 + 1 and found.stop == 100_000


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("seed", range(5))
def test_class_scores_with_noise_of_one_step_are_one_kind(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=(16, classes)) * rng.uniform(0.5, 2.0, classes) + rng.normal(size=classes)
    assert worst(reference, rng.uniform(-0.05, 0.05, reference.shape), batch=True) is None


@pytest.mark.parametrize("seed", range(5))
def test_scattered_quiet_classes_are_no_part(seed: int) -> None:
    """Scores of a detector: most classes never appear in a few samples, and share the noise of those that do."""
    rng = np.random.default_rng(seed)
    level = np.where(rng.random(80) < 0.3, 1.0, 1e-3)
    level[[0, -1]] = 1.0
    reference = rng.random((4, 80, 10)) * level[:, None]
    assert worst(reference, rng.uniform(-1, 1, reference.shape) / 512, batch=True) is None


def test_a_few_values_say_nothing() -> None:
    """Two rows of four scores: one column lies near zero by chance."""
    reference = np.array([[1.0, 0.01, -1.0, 0.9], [0.8, -0.01, 1.1, -1.0]])
    assert worst(reference, np.full((2, 4), 0.01), batch=True) is None
    many = np.tile(reference, (8, 1))
    assert worst(many[:, [1, 0, 2, 3]], np.full((16, 4), 0.01), batch=True) == Part(1, 0, 1, pytest.approx(0.0))


def test_silence_is_not_judged() -> None:
    """Padding, or a channel that ReLU closes, has no signal; what appears there counts in the whole."""
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(1, 8, 20))
    reference[:, 6:] = 0.0
    assert worst(reference, rng.normal(size=reference.shape) / 100, batch=True) is None


def test_axes_that_change_their_size_are_left_out() -> None:
    search = PartSearch(True)
    for length in (15, 19):
        reference, noise = np.ones((1, 4, length)), np.full((1, 4, length), 0.01)
        noise[:, 2:] = 0.5
        search.add(reference, noise)
    assert search.worst == Part(1, 2, 4, pytest.approx(10 * np.log10(4.0)))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), min_size=0, max_size=4),
    seed=st.integers(0, 99),
    scale=st.sampled_from([0.0, 1e-300, 1.0, 1e150]),
)
def test_any_shape_has_parts_or_none(shape: list[int], seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    found = worst(rng.normal(size=shape) * scale, rng.normal(size=shape) * rng.choice([0.0, 1e-3], size=shape))
    assert found is None or (0 <= found.start < found.stop <= shape[found.axis] and np.isfinite(found.sqnr_db))


@pytest.mark.parametrize("quiet", [[0], [9], [0, 5], [4, 9], [0, 9]])
@pytest.mark.parametrize("seed", range(3))
def test_a_quiet_first_or_last_class_of_ten_is_no_part(quiet: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=(16, 10))
    reference[:, quiet] *= 0.01
    assert worst(reference, rng.uniform(-0.01, 0.01, reference.shape), batch=True) is None


@pytest.mark.parametrize("scores", [1, 2])
@pytest.mark.parametrize("first", [False, True])
def test_a_score_beside_the_numbers_of_a_box_is_a_part(scores: int, first: bool) -> None:
    rng = np.random.default_rng(2)
    level = np.array([BOXES] * 4 + [SCORES] * scores)
    reference = rng.normal(size=(40, 4 + scores)) * (level[::-1] if first else level)
    found = worst(reference, rng.uniform(-0.1, 0.1, reference.shape), batch=True)
    start = 0 if first else 4
    assert found is not None and (found.start, found.stop, found.period) == (start, start + scores, None)


@pytest.mark.parametrize(("boxes", "scores", "anchors"), [(4, 1, 3), (4, 6, 2), (4, 80, 3), (1, 1, 5), (4, 6, 9)])
@pytest.mark.parametrize("axis", [1, 2])
def test_parts_that_repeat_are_found_as_one(boxes: int, scores: int, anchors: int, axis: int) -> None:
    """Anchors side by side in one axis, each with boxes and scores."""
    rng = np.random.default_rng(4)
    level = np.tile([BOXES] * boxes + [SCORES] * scores, anchors)
    reference = rng.normal(size=(4, 30, len(level))) * level
    noise = rng.uniform(-0.1, 0.1, reference.shape)
    if axis == 1:
        reference, noise = np.swapaxes(reference, 1, 2), np.swapaxes(noise, 1, 2)
    found = worst(reference, noise, batch=True)
    assert found is not None
    assert (found.axis, found.start, found.stop, found.period) == (axis, boxes, boxes + scores, boxes + scores)
    quiet = np.square(np.moveaxis(reference, axis, 0)[level == SCORES]).sum()
    error = np.square(np.moveaxis(noise, axis, 0)[level == SCORES]).sum()
    assert found.sqnr_db == pytest.approx(10 * np.log10(quiet / error))
    assert f"{boxes}:{boxes + scores} in every {boxes + scores} of axis {axis}" in str(found)
