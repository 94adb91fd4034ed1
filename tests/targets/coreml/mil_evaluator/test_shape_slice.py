"""Ops that move values: against NumPy indexing. Everything here must be exact in every dtype."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from deploykit_targets.coreml.mil_evaluator import EvaluationError

DTYPES = [np.float32, np.float16, np.int32, np.bool_]


def numbered(*shape, dtype=np.float32):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_transpose_reverse_tile_in_every_dtype(mil, dtype):
    x, mb = numbered(2, 3, 4, dtype=dtype), mil.mb
    np.testing.assert_array_equal(
        mil.evaluate("transpose", lambda x: mb.transpose(x=x, perm=[2, 0, -2]), x), x.transpose(2, 0, 1)
    )
    np.testing.assert_array_equal(mil.evaluate("reverse", lambda x: mb.reverse(x=x), x), x[::-1, ::-1, ::-1])
    np.testing.assert_array_equal(mil.evaluate("reverse", lambda x: mb.reverse(x=x, axes=[-2]), x), x[:, ::-1])
    np.testing.assert_array_equal(
        mil.evaluate("tile", lambda x: mb.tile(x=x, reps=[2, 1, 3]), x), np.tile(x, (2, 1, 3))
    )
    np.testing.assert_array_equal(mil.evaluate("identity", lambda x: mb.identity(x=x), x), x)


@pytest.mark.parametrize(
    ("shape", "opset", "want"),
    [
        ([6, 4], "iOS15", (6, 4)),
        ([-1, 4], "iOS15", (6, 4)),
        ([0, -1, 2], "iOS15", (2, 6, 2)),
        ([1, 0, -1, 0], "iOS17", (1, 2, 3, 4)),
        ([0, 0, 0, 0, -1], "iOS17", (1, 1, 2, 3, 4)),
    ],
)
def test_reshape(mil, shape, opset, want):
    x = numbered(2, 3, 4)
    got = mil.evaluate("reshape", lambda x: mil.mb.reshape(x=x, shape=shape), x, opset=opset)
    np.testing.assert_array_equal(got, x.reshape(want))


def test_reshape_to_a_computed_shape(mil):
    x, like = numbered(2, 6), numbered(3, 4)
    got = mil.evaluate("reshape", lambda x, y: mil.mb.reshape(x=x, shape=mil.mb.shape(x=y)), x, like, dynamic=True)
    np.testing.assert_array_equal(got, x.reshape(3, 4))


def test_reshape_like(mil):
    x, a, b = numbered(30, 6), numbered(2, 3, 4), numbered(1, 5, 6)

    def build(x, a, b):
        return mil.mb.reshape_like(x=x, ref_tensors=(a, b), begins=(0, 1), ends=(2, 0), end_masks=(False, True))

    np.testing.assert_array_equal(mil.evaluate("reshape_like", build, x, a, b), x.reshape(2, 3, 5, 6))


@pytest.mark.parametrize("axes", [[0], [-1], [1, 3], [0, -1, 2]])
def test_expand_dims(mil, axes):
    x = numbered(2, 3)
    got = mil.evaluate("expand_dims", lambda x: mil.mb.expand_dims(x=x, axes=axes), x)
    np.testing.assert_array_equal(got, np.expand_dims(x, tuple(axes)))


@pytest.mark.parametrize(("axes", "want"), [(None, (2, 3)), ([0], (2, 1, 3, 1)), ([-1, 0], (2, 1, 3)), ([1], None)])
def test_squeeze_ignores_axes_that_are_not_one(mil, axes, want):
    x = numbered(1, 2, 1, 3, 1)
    options = {} if axes is None else {"axes": axes}
    got = mil.evaluate("squeeze", lambda x: mil.mb.squeeze(x=x, **options), x)
    np.testing.assert_array_equal(got, x.reshape(want or x.shape))


@pytest.mark.parametrize(("axis", "want"), [(1, (2, 12)), (-1, (6, 4)), (0, (1, 24)), (3, (24, 1))])
def test_flatten2d(mil, axis, want):
    x = numbered(2, 3, 4)
    got = mil.evaluate("flatten2d", lambda x: mil.mb.flatten2d(x=x, axis=axis), x)
    np.testing.assert_array_equal(got, x.reshape(want))


def test_shape_of_an_input_of_unknown_size(mil):
    got = mil.evaluate("shape", lambda x: mil.mb.shape(x=x), numbered(4, 1, 2), dynamic=True)
    np.testing.assert_array_equal(got, [4, 1, 2])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat_and_stack(mil, axis):
    x, y, mb = numbered(2, 3), -numbered(2, 3), mil.mb
    got = mil.evaluate("concat", lambda x, y: mb.concat(values=(x, y), axis=axis), x, y)
    np.testing.assert_array_equal(got, np.concatenate([x, y], axis))
    got = mil.evaluate("stack", lambda x, y: mb.stack(values=(x, y), axis=axis), x, y)
    np.testing.assert_array_equal(got, np.stack([x, y], axis))
    got = mil.evaluate("concat", lambda x, y: mb.concat(values=(x, y), axis=axis, interleave=True), x, y)
    np.testing.assert_array_equal(got, np.stack([x, y], axis % 2 + 1).reshape(got.shape))


def test_concat_of_scalars_makes_a_vector(mil):
    x, mb = np.array([3.0], np.float32), mil.mb
    got = mil.evaluate("concat", lambda x: mb.concat(values=(mb.squeeze(x=x), mb.exp(x=mb.squeeze(x=x))), axis=0), x)
    np.testing.assert_allclose(got, [3, np.exp(3)], rtol=1e-6)


def test_split_evenly_and_by_sizes(mil):
    x, mb = numbered(2, 6), mil.mb
    for got, want in zip(
        mil.evaluate("split", lambda x: mb.split(x=x, num_splits=3, axis=-1), x), np.split(x, 3, -1), strict=True
    ):
        np.testing.assert_array_equal(got, want)
    for got, want in zip(
        mil.evaluate("split", lambda x: mb.split(x=x, split_sizes=[1, 3, 2], axis=1), x),
        np.split(x, [1, 4], 1),
        strict=True,
    ):
        np.testing.assert_array_equal(got, want)


# --- blocks -------------------------------------------------------------------------------------------------------


def test_depth_to_space_orders_channels_by_block_first(mil):
    x, b = numbered(2, 12, 2, 3), 2
    got = mil.evaluate("depth_to_space", lambda x: mil.mb.depth_to_space(x=x, block_size=b), x)
    want = np.zeros((2, 3, 4, 6))
    for row, column, c in itertools.product(range(b), range(b), range(3)):
        want[:, c, row::b, column::b] = x[:, (row * b + column) * 3 + c]
    np.testing.assert_array_equal(got, want)
    back = mil.evaluate("space_to_depth", lambda x: mil.mb.space_to_depth(x=x, block_size=b), got)
    np.testing.assert_array_equal(back, x)


def test_pixel_shuffle_orders_channels_by_channel_first(mil):
    x = numbered(1, 12, 2, 3)
    got = mil.evaluate("pixel_shuffle", lambda x: mil.mb.pixel_shuffle(x=x, upscale_factor=2), x)
    want = np.zeros((1, 3, 4, 6))
    for row, column, c in itertools.product(range(2), range(2), range(3)):
        want[:, c, row::2, column::2] = x[:, c * 4 + row * 2 + column]
    np.testing.assert_array_equal(got, want)
    back = mil.evaluate("pixel_unshuffle", lambda x: mil.mb.pixel_unshuffle(x=x, downscale_factor=np.uint32(2)), got)
    np.testing.assert_array_equal(back, x)


def test_space_to_batch_and_back(mil):
    x, block, pads = numbered(2, 2, 3, 4), [2, 3], [[1, 0], [0, 2]]
    got = mil.evaluate("space_to_batch", lambda x: mil.mb.space_to_batch(x=x, block_shape=block, paddings=pads), x)
    padded = np.pad(x, [(0, 0), (0, 0), *pads])
    want = [padded[:, :, row :: block[0], column :: block[1]] for row in range(2) for column in range(3)]
    np.testing.assert_array_equal(got, np.concatenate(want))
    back = mil.evaluate("batch_to_space", lambda x: mil.mb.batch_to_space(x=x, block_shape=block, crops=pads), got)
    np.testing.assert_array_equal(back, x)


# --- slices -------------------------------------------------------------------------------------------------------

SLICES = {
    "plain": ({"begin": [0, 1, 1], "end": [2, 3, 4]}, np.s_[0:2, 1:3, 1:4]),
    "stride": ({"begin": [0, 0, 0], "end": [4, 5, 6], "stride": [2, 3, 4]}, np.s_[::2, ::3, ::4]),
    "negative ends": ({"begin": [-3, 0, 1], "end": [-1, -2, -1]}, np.s_[-3:-1, 0:-2, 1:-1]),
    "negative stride": ({"begin": [3, 4, 5], "end": [0, 1, 0], "stride": [-1, -2, -3]}, np.s_[3:0:-1, 4:1:-2, 5:0:-3]),
    "reversed by masks": (
        {
            "begin": [0, 0, 0],
            "end": [0, 0, 0],
            "stride": [-1, -2, 1],
            "begin_mask": [True] * 3,
            "end_mask": [True] * 3,
        },
        np.s_[::-1, ::-2, :],
    ),
    "one mask": ({"begin": [1, 1, 1], "end": [3, 0, 0], "end_mask": [False, True, True]}, np.s_[1:3, 1:, 1:]),
    "squeeze": (
        {"begin": [1, 0, -1], "end": [0, 5, 0], "squeeze_mask": [True, False, True]},
        np.s_[1, 0:5, -1],
    ),
    "past the end": ({"begin": [0, 0, 0], "end": [9, 99, 6]}, np.s_[:, :, :]),
    "single": ({"begin": [-1, 0, 2], "end": [4, 1, 3]}, np.s_[-1:, 0:1, 2:3]),
}


@pytest.mark.parametrize("case", SLICES)
def test_slice_by_index(mil, case):
    options, want = SLICES[case]
    x = numbered(4, 5, 6)
    got = mil.evaluate("slice_by_index", lambda x: mil.mb.slice_by_index(x=x, **options), x)
    np.testing.assert_array_equal(got, x[want])


def test_slice_with_computed_ends(mil):
    x = numbered(4, 5)
    begin, end = np.array([1, -2], np.int32), np.array([3, 5], np.int32)
    got = mil.evaluate("slice_by_index", lambda x, b, e: mil.mb.slice_by_index(x=x, begin=b, end=e), x, begin, end)
    np.testing.assert_array_equal(got, x[1:3, -2:5])


@pytest.mark.parametrize("case", [name for name in SLICES if name != "single"])
def test_slice_update(mil, case):
    options, at = SLICES[case]
    x = numbered(4, 5, 6)
    update = -1 - numbered(*x[at].shape)
    got = mil.evaluate(
        "slice_update", lambda x, u: mil.mb.slice_update(x=x, update=u, **options), x, update, opset="iOS18"
    )
    want = x.copy()
    want[at] = update
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("begin", "size"), [([1, 2], [2, 3]), ([0, 1], [-1, -1]), ([-2, -5], [1, 2])])
def test_slice_by_size(mil, begin, size):
    x = numbered(4, 5)
    got = mil.evaluate("slice_by_size", lambda x: mil.mb.slice_by_size(x=x, begin=begin, size=size), x, dynamic=True)
    start = [b % s for b, s in zip(begin, x.shape, strict=True)]
    stop = [x.shape[i] if n == -1 else start[i] + n for i, n in enumerate(size)]
    np.testing.assert_array_equal(got, x[start[0] : stop[0], start[1] : stop[1]])


@pytest.mark.parametrize(("axis", "size", "stride"), [(0, 3, 1), (-1, 2, 2), (1, 5, 1), (-2, 2, 3)])
def test_sliding_windows(mil, axis, size, stride):
    x = numbered(4, 5, 6)
    got = mil.evaluate("sliding_windows", lambda x: mil.mb.sliding_windows(x=x, axis=axis, size=size, stride=stride), x)
    dim = axis % 3
    windows = [np.take(x, range(at, at + size), dim) for at in range(0, x.shape[dim] - size + 1, stride)]
    np.testing.assert_array_equal(got, np.stack(windows, dim))


def test_crop(mil):
    x = numbered(1, 2, 5, 6)
    got = mil.evaluate("crop", lambda x: mil.mb.crop(x=x, crop_height=[1, 2], crop_width=[0, 3]), x)
    np.testing.assert_array_equal(got, x[:, :, 1:3, 0:3])


@pytest.mark.parametrize(("seq", "batch"), [(1, 0), (0, 1), (2, 0), (-1, -2)])
def test_reverse_sequence(mil, seq, batch):
    x = numbered(3, 3, 4)
    lengths = np.array([0, 3, 2], np.int32)
    got = mil.evaluate(
        "reverse_sequence",
        lambda x, n: mil.mb.reverse_sequence(x=x, lengths=n, seq_axis=seq, batch_axis=batch),
        x,
        lengths,
    )
    want = x.copy()
    for item, length in enumerate(lengths):
        rows, moved = np.moveaxis(want, [batch, seq], [0, 1]), np.moveaxis(x, [batch, seq], [0, 1])
        rows[item, :length] = moved[item, :length][::-1]
    np.testing.assert_array_equal(got, want)


# --- pads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate"])
@pytest.mark.parametrize("pad", [[1, 2], [2, 1, 0, 3], [1, 0, 2, 2, 3, 1]])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_pad_the_last_axes(mil, mode, pad, dtype):
    x = numbered(3, 4, 5, dtype=dtype)
    options = {"constant_val": dtype(-2.5)} if mode == "constant" else {}
    got = mil.evaluate("pad", lambda x: mil.mb.pad(x=x, pad=pad, mode=mode, **options), x)
    pairs = [(0, 0)] * (3 - len(pad) // 2) + list(zip(pad[::2], pad[1::2], strict=True))
    how = {"constant": {"constant_values": -2.5}, "reflect": {"mode": "reflect"}, "replicate": {"mode": "edge"}}
    np.testing.assert_array_equal(got, np.pad(x, pairs, **how[mode]))


def test_pad_by_a_computed_amount(mil):
    x, pad = numbered(2, 3), np.array([0, 1, 2, 0], np.int32)
    got = mil.evaluate("pad", lambda x, p: mil.mb.pad(x=x, pad=p), x, pad)
    np.testing.assert_array_equal(got, np.pad(x, [(0, 1), (2, 0)]))


def test_reflection_larger_than_the_input_is_refused(mil):
    with pytest.raises(EvaluationError, match="pad"):
        mil.evaluate("pad", lambda x: mil.mb.pad(x=x, pad=[4, 0], mode="reflect"), numbered(2, 3))


def test_reflect_agrees_with_pytorch(mil, rng):
    x = rng.normal(size=(1, 2, 6, 7)).astype(np.float32)
    got = mil.evaluate("pad", lambda x: mil.mb.pad(x=x, pad=[3, 2, 4, 6], mode="reflect"), x)
    np.testing.assert_array_equal(got, F.pad(torch.from_numpy(x), (4, 6, 3, 2), mode="reflect").numpy())
