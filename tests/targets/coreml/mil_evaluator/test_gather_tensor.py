"""Gathers, scatters, and ops that make or search tensors: against NumPy, or loops over the op set's definitions."""

import itertools

import numpy as np
import pytest

from deploykit_targets.coreml.mil_evaluator import EvaluationError

OLD, NEW = "iOS15", "iOS17"


def numbered(*shape, dtype=np.float32):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


# --- gather -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("shape", [(3,), (2, 2)])
def test_gather(mil, rng, axis, shape):
    x, indices = numbered(4, 5, 6), rng.integers(0, 4, shape).astype(np.int32)
    got = mil.evaluate("gather", lambda x, i: mil.mb.gather(x=x, indices=i, axis=axis), x, indices)
    np.testing.assert_array_equal(got, np.take(x, indices, axis))


def test_gather_a_scalar_index(mil):
    got = mil.evaluate("gather", lambda x: mil.mb.gather(x=x, indices=2, axis=1), numbered(3, 4))
    np.testing.assert_array_equal(got, numbered(3, 4)[:, 2])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.bool_])
def test_gather_of_narrow_types(mil, dtype):
    x, indices = numbered(4, 2, dtype=dtype), np.array([3, 0], np.uint16)
    if dtype == np.bool_:
        x = x.astype(np.int32)
    got = mil.evaluate("gather", lambda x, i: mil.mb.gather(x=x, indices=i, axis=0), x, indices)
    np.testing.assert_array_equal(got, x[[3, 0]])


@pytest.mark.parametrize(("axis", "batch"), [(1, 1), (2, 1), (2, 2), (-1, 1)])
def test_gather_with_batches(mil, rng, axis, batch):
    x = numbered(2, 3, 4)
    indices = rng.integers(0, 3, (2, 3, 5)[: batch + 1]).astype(np.int32)
    got = mil.evaluate(
        "gather", lambda x, i: mil.mb.gather(x=x, indices=i, axis=axis, batch_dims=batch), x, indices, opset="iOS16"
    )
    want = np.empty((*x.shape[: axis % 3], *indices.shape[batch:], *x.shape[axis % 3 + 1 :]), x.dtype)
    for at in itertools.product(*(range(n) for n in x.shape[:batch])):
        want[at] = np.take(x[at], indices[at], axis % 3 - batch)
    np.testing.assert_array_equal(got, want)


def test_gather_along_axis(mil, rng):
    x = numbered(3, 4, 5)
    for axis in (0, 1, -1):
        shape = [3, 4, 5]
        shape[axis] = 2
        indices = rng.integers(0, 3, shape).astype(np.int32)
        got = mil.evaluate("gather_along_axis", axis_gather(mil, axis), x, indices)
        np.testing.assert_array_equal(got, np.take_along_axis(x, indices, axis))


def axis_gather(mil, axis, **options):
    return lambda x, i: mil.mb.gather_along_axis(x=x, indices=i, axis=axis, **options)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_gather_nd(mil, rng, depth):
    x, indices = numbered(3, 4, 5), rng.integers(0, 3, (2, 6, depth)).astype(np.int32)
    got = mil.evaluate("gather_nd", lambda x, i: mil.mb.gather_nd(x=x, indices=i), x, indices)
    np.testing.assert_array_equal(got, x[tuple(np.moveaxis(indices, -1, 0))])


def test_gather_nd_with_batches(mil, rng):
    x, indices = numbered(2, 3, 4, 5), rng.integers(0, 3, (2, 6, 2)).astype(np.int32)
    got = mil.evaluate(
        "gather_nd", lambda x, i: mil.mb.gather_nd(x=x, indices=i, batch_dims=1), x, indices, opset="iOS16"
    )
    np.testing.assert_array_equal(got, np.stack([x[b][tuple(indices[b].T)] for b in range(2)]))


@pytest.mark.parametrize("opset", [OLD, "iOS16"])
def test_negative_indices_count_from_the_end_before_ios17(mil, opset):
    x, indices = numbered(4, 2), np.array([-1, 1], np.int32)
    got = mil.evaluate("gather", lambda x, i: mil.mb.gather(x=x, indices=i), x, indices, opset=opset)
    np.testing.assert_array_equal(got, x[[-1, 1]])
    got = mil.evaluate(
        "scatter",
        lambda x, i: mil.mb.scatter(data=x, indices=i, updates=mil.mb.gather(x=x, indices=i)),
        x,
        indices,
        opset=opset,
    )
    want = x.copy()
    want[[-1, 1]] *= 2
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("bad", [-1, 4])
@pytest.mark.parametrize("validate", [True, False])
def test_an_index_out_of_range_is_refused_since_ios17(mil, bad, validate):
    x, indices = numbered(4, 2), np.array([0, bad], np.int32)
    with pytest.raises(EvaluationError, match=rf"gather.*index {bad} is outside") as error:
        mil.evaluate("gather", lambda x, i: mil.mb.gather(x=x, indices=i, validate_indices=validate), x, indices)
    assert ("undefined" in str(error.value)) is not validate


def test_an_undefined_index_can_be_clamped(mil):
    x, indices = numbered(4, 2), np.array([-7, 9], np.int32)
    build = lambda x, i: mil.mb.gather(x=x, indices=i)  # noqa: E731
    got = mil.evaluate("gather", build, x, indices, undefined_indices="clamp")
    np.testing.assert_array_equal(got, x[[0, 3]])
    nd = np.array([[9, -1]], np.int32)
    got = mil.evaluate("gather_nd", lambda x, i: mil.mb.gather_nd(x=x, indices=i), x, nd, undefined_indices="clamp")
    np.testing.assert_array_equal(got, [x[3, 0]])
    validated = lambda x, i: mil.mb.gather(x=x, indices=i, validate_indices=True)  # noqa: E731
    with pytest.raises(EvaluationError):
        mil.evaluate("gather", validated, x, indices, undefined_indices="clamp")


# --- scatter ------------------------------------------------------------------------------------------------------

MODES = {
    "update": lambda old, new: new,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": lambda old, new: old / new if np.issubdtype(type(old), np.floating) else np.trunc(old / new),
    "max": np.maximum,
    "min": np.minimum,
}


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.parametrize("mode", MODES)
def test_scatter_with_repeated_indices(mil, rng, mode, dtype):
    data = rng.integers(5, 90, (5, 3)).astype(dtype)
    indices, updates = np.array([4, 0, 4, 2], np.int32), rng.integers(1, 9, (4, 3)).astype(dtype)

    def build(data, indices, updates):
        return mil.mb.scatter(data=data, indices=indices, updates=updates, axis=0, mode=mode)

    want = data.copy()
    for at, row in zip(indices, updates, strict=True):
        for column in range(3):
            want[at, column] = MODES[mode](want[at, column], row[column])
    np.testing.assert_allclose(mil.evaluate("scatter", build, data, indices, updates), want, rtol=1e-6)


def test_scatter_along_another_axis(mil):
    data, updates = numbered(2, 4, 3), -numbered(2, 2, 3)

    def build(data, updates):
        return mil.mb.scatter(data=data, indices=np.array([3, 1], np.int32), updates=updates, axis=-2, mode="update")

    want = data.copy()
    want[:, [3, 1]] = updates
    np.testing.assert_array_equal(mil.evaluate("scatter", build, data, updates), want)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("axis", [0, -1])
def test_scatter_along_axis(mil, rng, mode, axis):
    data = rng.integers(5, 90, (3, 4)).astype(np.float32)
    shape = (2, 4) if axis == 0 else (3, 5)
    indices, updates = rng.integers(0, 3, shape).astype(np.int32), rng.integers(1, 9, shape).astype(np.float32)

    def build(data, indices, updates):
        return mil.mb.scatter_along_axis(data=data, indices=indices, updates=updates, axis=axis, mode=mode)

    want = data.copy()
    for i, j in itertools.product(*(range(n) for n in shape)):
        at = (indices[i, j], j) if axis == 0 else (i, indices[i, j])
        want[at] = MODES[mode](want[at], updates[i, j])
    np.testing.assert_allclose(mil.evaluate("scatter_along_axis", build, data, indices, updates), want, rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("depth", [1, 2])
def test_scatter_nd(mil, rng, mode, depth):
    data = rng.integers(5, 90, (3, 4, 2)).astype(np.float32)
    indices = rng.integers(0, 3, (5, depth)).astype(np.int32)
    updates = rng.integers(1, 9, (5, *data.shape[depth:])).astype(np.float32)

    def build(data, indices, updates):
        return mil.mb.scatter_nd(data=data, indices=indices, updates=updates, mode=mode)

    want = data.copy()
    for index, update in zip(indices, updates, strict=True):
        row = want[tuple(index)]
        row[...] = MODES[mode](row, update) if mode != "div" else row / update
    np.testing.assert_allclose(mil.evaluate("scatter_nd", build, data, indices, updates), want, rtol=1e-6)


@pytest.mark.parametrize("name", ["scatter", "scatter_along_axis", "scatter_nd"])
def test_scatter_out_of_range_is_refused(mil, name):
    data, indices = numbered(3, 2), np.array([[0, 7]], np.int32)
    updates = np.ones({"scatter": (1, 2), "scatter_along_axis": (1, 2), "scatter_nd": (1,)}[name], np.float32)
    index = np.array([7], np.int32) if name == "scatter" else indices
    with pytest.raises(EvaluationError, match="index 7"):
        mil.evaluate(name, lambda d, i, u: getattr(mil.mb, name)(data=d, indices=i, updates=u), data, index, updates)


# --- making and searching -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lower", "upper"), [(-1, -1), (0, -1), (-1, 0), (0, 0), (1, 2), (3, 0)])
def test_band_part(mil, lower, upper):
    x = 1 + numbered(2, 4, 5)
    got = mil.evaluate("band_part", lambda x: mil.mb.band_part(x=x, lower=lower, upper=upper), x)
    row, column = np.mgrid[:4, :5]
    kept = ((lower < 0) | (row - column <= lower)) & ((upper < 0) | (column - row <= upper))
    np.testing.assert_array_equal(got, x * kept)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("axis", [0, 2, -1])
def test_cumsum(mil, axis, exclusive, reverse):
    x = numbered(2, 3, 4)
    got = mil.evaluate("cumsum", lambda x: mil.mb.cumsum(x=x, axis=axis, exclusive=exclusive, reverse=reverse), x)
    source = np.flip(x, axis) if reverse else x
    want = np.cumsum(source, axis) - (source if exclusive else 0)
    np.testing.assert_array_equal(got, np.flip(want, axis) if reverse else want)


@pytest.mark.parametrize("value", [np.float32(2.5), np.int32(3), True, np.float16(0.1)])
def test_fill(mil, value):
    shape = np.array([2, 3], np.int32)
    got = mil.evaluate("fill", lambda s: mil.mb.fill(shape=s, value=value), shape)
    np.testing.assert_array_equal(got, np.full((2, 3), value))
    reference = numbered(3, 1, dtype=np.int32)
    got = mil.evaluate("fill_like", lambda x: mil.mb.fill_like(ref_tensor=x, value=value), reference)
    np.testing.assert_array_equal(got, np.full((3, 1), value))


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.bool_])
def test_non_zero(mil, dtype):
    x = np.array([[0, 1, 0], [2, 0, 3]]).astype(dtype)
    got = mil.evaluate("non_zero", lambda x: mil.mb.non_zero(x=x), x)
    np.testing.assert_array_equal(got, np.argwhere(x))
    assert mil.evaluate("non_zero", lambda x: mil.mb.non_zero(x=x), np.zeros_like(x)).shape == (0, 2)


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot(mil, axis):
    x = np.array([[1, 0], [3, 9]], np.int32)
    build = lambda x: mil.mb.one_hot(  # noqa: E731
        indices=x, one_hot_vector_size=4, axis=axis, on_value=np.float32(1.5), off_value=np.float32(-1)
    )
    want = np.where(x[..., None] == np.arange(4), 1.5, -1)
    np.testing.assert_array_equal(mil.evaluate("one_hot", build, x), np.moveaxis(want, -1, axis))


@pytest.mark.parametrize(
    ("start", "end", "step"), [(0, 5, 1), (5, 0, -2), (1, 2, 3), (0.5, 2.0, 0.25), (0.0, 1.0, 0.3), (3, 3, 1)]
)
def test_range(mil, start, end, step):
    kind = np.float32 if isinstance(start, float) else np.int32
    scalars = [np.array([v], kind) for v in (start, end, step)]
    squeeze = lambda v: mil.mb.squeeze(x=v)  # noqa: E731
    got = mil.evaluate(
        "range_1d", lambda a, b, c: mil.mb.range_1d(start=squeeze(a), end=squeeze(b), step=squeeze(c)), *scalars
    )
    np.testing.assert_allclose(got, np.arange(start, end, step), rtol=1e-6)


@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize("axis", [-1, 0])
def test_argsort(mil, rng, axis, ascending):
    x = rng.permutation(20).reshape(4, 5).astype(np.float32)
    got = mil.evaluate("argsort", lambda x: mil.mb.argsort(x=x, axis=axis, ascending=ascending), x)
    np.testing.assert_array_equal(got, np.argsort(x if ascending else -x, axis))


@pytest.mark.parametrize("opset", ["iOS15", "iOS16", "iOS17"])
@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize("axis", [-1, 0])
def test_topk(mil, rng, axis, ascending, opset):
    x = rng.permutation(20).reshape(4, 5).astype(np.float32)
    values, indices = mil.evaluate(
        "topk", lambda x: mil.mb.topk(x=x, k=3, axis=axis, ascending=ascending), x, opset=opset
    )
    order = np.take(np.argsort(x if ascending else -x, axis), range(3), axis)
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(values, np.take_along_axis(x, order, axis))


def test_topk_without_indices_and_with_narrow_ones(mil):
    x = np.array([3, 9, 1], np.int16)
    got = mil.evaluate("topk", lambda x: mil.mb.topk(x=x, k=2, return_indices=False), x)
    np.testing.assert_array_equal(got, [9, 3])
    values, indices = mil.evaluate("topk", lambda x: mil.mb.topk(x=x, k=2, output_indices_dtype="uint16"), x)
    assert indices.dtype == np.uint16 and list(indices) == [1, 0] and list(values) == [9, 3]


# --- suppression --------------------------------------------------------------------------------------------------


def iou(a, b):
    low = np.maximum(a[:2] - a[2:] / 2, b[:2] - b[2:] / 2)
    high = np.minimum(a[:2] + a[2:] / 2, b[:2] + b[2:] / 2)
    shared = np.prod(np.maximum(high - low, 0))
    union = a[2] * a[3] + b[2] * b[3] - shared
    return shared / union if union > 0 else 0.0


def suppress(boxes, scores, threshold, least, limit, by_class):
    """Greedy definition over one batch item: indices of the kept boxes."""
    best, label, kept = scores.max(-1), scores.argmax(-1), []
    for box in np.argsort(-best, kind="stable"):
        rivals = [k for k in kept if not by_class or label[k] == label[box]]
        if best[box] >= least and all(iou(boxes[box], boxes[k]) <= threshold for k in rivals):
            kept.append(int(box))
    return (kept or [int(best.argmax())])[:limit]


@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("least", [-1.0, 0.6, 2.0])
def test_non_maximum_suppression_with_score_threshold(mil, rng, by_class, least):
    boxes = np.concatenate([rng.uniform(0, 10, (2, 12, 2)), rng.uniform(2, 6, (2, 12, 2))], -1).astype(np.float32)
    scores = rng.uniform(0, 1, (2, 12, 3)).astype(np.float32)

    def build(boxes, scores):
        return mil.mb.non_maximum_suppression(
            boxes=boxes, scores=scores, iou_threshold=0.3, score_threshold=least, max_boxes=5,
            per_class_suppression=by_class,
        )  # fmt: skip

    got_boxes, got_scores, got_indices, counts = mil.evaluate(
        "non_maximum_suppression", build, boxes, scores, opset="iOS15"
    )
    for item in range(2):
        kept = suppress(boxes[item], scores[item], 0.3, least, 5, by_class)
        assert counts[item] == len(kept)
        np.testing.assert_array_equal(got_indices[item], kept + [-1] * (5 - len(kept)))
        np.testing.assert_array_equal(got_boxes[item, : len(kept)], boxes[item, kept])
        np.testing.assert_array_equal(got_scores[item, : len(kept)], scores[item, kept])
        assert not got_boxes[item, len(kept) :].any() and not got_scores[item, len(kept) :].any()


def test_non_maximum_suppression_since_ios17_has_boxes_in_columns(mil, rng):
    boxes = np.concatenate([rng.uniform(0, 10, (1, 9, 2)), rng.uniform(2, 6, (1, 9, 2))], -1).astype(np.float32)
    scores = rng.uniform(0, 1, (1, 9, 2)).astype(np.float32)

    def build(boxes, scores):
        return mil.mb.non_maximum_suppression(boxes=boxes, scores=scores, iou_threshold=0.2, max_boxes=4)

    columns = (np.ascontiguousarray(a.transpose(0, 2, 1)) for a in (boxes, scores))
    got_boxes, got_scores, indices = mil.evaluate("non_maximum_suppression", build, *columns)
    kept = suppress(boxes[0], scores[0], 0.2, -np.inf, 4, by_class=False)
    np.testing.assert_array_equal(indices[0], kept + [-1] * (4 - len(kept)))
    np.testing.assert_array_equal(got_boxes[0, :, : len(kept)], boxes[0, kept].T)
    np.testing.assert_array_equal(got_scores[0, :, : len(kept)], scores[0, kept].T)


# --- random -------------------------------------------------------------------------------------------------------

SHAPE = np.array([40, 50], np.int32)


def test_random_numbers_follow_their_distributions(mil):
    """2000 draws: means within 4 standard errors."""
    mb = mil.mb
    got = mil.evaluate("random_bernoulli", lambda s: mb.random_bernoulli(shape=s, prob=np.float32(0.3)), SHAPE)
    assert set(np.unique(got)) == {0, 1} and abs(got.mean() - 0.3) < 4 * np.sqrt(0.21 / 2000)
    got = mil.evaluate(
        "random_normal", lambda s: mb.random_normal(shape=s, mean=np.float32(2), stddev=np.float32(3)), SHAPE
    )
    assert abs(got.mean() - 2) < 4 * 3 / np.sqrt(2000) and abs(got.std() - 3) < 0.3
    got = mil.evaluate(
        "random_uniform", lambda s: mb.random_uniform(shape=s, low=np.float32(-1), high=np.float32(3)), SHAPE
    )
    assert got.min() >= -1 and got.max() < 3 and abs(got.mean() - 1) < 4 * 4 / np.sqrt(12 * 2000)


@pytest.mark.parametrize("mode", ["logits", "probs"])
def test_random_categorical(mil, mode):
    share = np.array([[0.2, 0.5, 0.3], [0.0, 0.1, 0.9]])
    x = (share if mode == "probs" else np.log(share + 1e-30)).astype(np.float32)
    got = mil.evaluate("random_categorical", lambda x: mil.mb.random_categorical(x=x, mode=mode, size=2000), x)
    for row in range(2):
        seen = np.bincount(got[row].astype(int), minlength=3) / 2000
        np.testing.assert_allclose(seen, share[row], atol=4 * np.sqrt(0.25 / 2000))


def test_random_ops_repeat_with_the_seed_of_the_run_and_with_their_own(mil):
    build = lambda s: mil.mb.random_normal(shape=s)  # noqa: E731
    draw = lambda seed: mil.evaluate("random_normal", build, SHAPE, run={"seed": seed})  # noqa: E731
    np.testing.assert_array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))
    fixed = lambda s: mil.mb.random_normal(shape=s, seed=5)  # noqa: E731
    np.testing.assert_array_equal(
        mil.evaluate("random_normal", fixed, SHAPE, run={"seed": 1}),
        mil.evaluate("random_normal", fixed, SHAPE, run={"seed": 2}),
    )
