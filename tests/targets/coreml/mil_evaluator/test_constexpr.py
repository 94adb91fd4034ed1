"""Compressed weights against NumPy written from the op set's definitions, and coremltools' own decompression."""

import itertools

import numpy as np
import pytest

from deploykit_targets.coreml.mil_evaluator import from_mil


def decompressed(mil, op, build, *, opset="iOS18"):
    """Value of a constant expression: evaluated, and as coremltools decompresses it."""
    found = []

    def main(x):
        result = build()
        outputs = list(result) if isinstance(result, list | tuple) else [result]
        found.extend(outputs)
        return outputs[-1]

    program = from_mil(mil.build(main, [np.zeros(1, np.float32)], opset=opset))
    assert op in program.ops()
    (value,) = program.run({"x": np.zeros(1, np.float32)}).values()
    return value, found[-1].op.materialized_val_inference()


def agree(got, want, own, dtype):
    """Exact in float32; within one rounding of half where the arithmetic of coremltools is in half."""
    assert got.dtype == dtype
    tolerance = {"rtol": 1e-6, "atol": 0} if dtype == np.float32 else {"rtol": 2e-3, "atol": 1e-4}
    np.testing.assert_allclose(got, want, **tolerance)
    np.testing.assert_allclose(got.astype(float), np.asarray(own).astype(float), **tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_affine_dequantize(mil, rng, kind, per_channel, axis, dtype):
    data = rng.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, (3, 4, 5)).astype(kind)
    n = data.shape[axis] if per_channel else 1
    scale, zero = rng.uniform(0.01, 0.1, n).astype(dtype), rng.integers(0, 50, n).astype(kind)
    shape = [1, 1, 1]
    shape[axis] = n

    def build():
        return mil.mb.constexpr_affine_dequantize(
            quantized_data=data,
            zero_point=zero if per_channel else zero[0],
            scale=scale if per_channel else scale[0],
            axis=axis,
        )

    got, own = decompressed(mil, "constexpr_affine_dequantize", build, opset="iOS16")
    want = (data.astype(float) - zero.reshape(shape)) * scale.astype(float).reshape(shape)
    agree(got, want, own, dtype)


@pytest.mark.parametrize("opset", ["iOS16", "iOS18"])
def test_cast(mil, opset):
    source = np.array([[0.1, -2.5]], np.float16)
    build = lambda: mil.mb.constexpr_cast(source_val=source, output_dtype="fp32")  # noqa: E731
    got, own = decompressed(mil, "constexpr_cast", build, opset=opset)
    agree(got, source.astype(np.float32), own, np.float32)


def packed(indices, bits):
    """Bits of each index, least significant first, in bytes filled from their least significant bit."""
    stream = [(int(i) >> b) & 1 for i in indices.ravel() for b in range(bits)]
    return np.packbits(stream, bitorder="little")


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_packed_palette_of_ios16(mil, rng, bits, dtype):
    indices, lut = rng.integers(0, 2**bits, (3, 7)), rng.normal(size=2**bits).astype(dtype)

    def build():
        return mil.mb.constexpr_lut_to_dense(
            indices=packed(indices, bits), lut=lut, shape=np.array(indices.shape, np.uint32)
        )

    got, own = decompressed(mil, "constexpr_lut_to_dense", build, opset="iOS16")
    np.testing.assert_array_equal(got, lut[indices])
    np.testing.assert_array_equal(got, own)


def test_packed_sparsity_of_ios16(mil, rng):
    dense = rng.normal(size=(3, 7)).astype(np.float32) * (rng.random((3, 7)) > 0.5)

    def build():
        return mil.mb.constexpr_sparse_to_dense(
            nonzero_data=dense[dense != 0],
            mask=np.packbits(dense != 0, bitorder="little"),
            shape=np.array(dense.shape, np.uint32),
        )

    got, own = decompressed(mil, "constexpr_sparse_to_dense", build, opset="iOS16")
    np.testing.assert_array_equal(got, dense)
    np.testing.assert_array_equal(got, own)


def typed(mil, array, name):
    """An array of one of coremltools' sub-byte types."""
    return array.astype(mil.types.nptype_from_builtin(mil.types.string_to_builtin(name)))


@pytest.mark.parametrize("kind", ["int4", "uint4", "int8", "uint8"])
@pytest.mark.parametrize("blocks", [(3, 2), (1, 1), (6, 1), (1, 8)])
@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_blockwise(mil, rng, kind, blocks, shifted, dtype):
    low, high = {"int4": (-8, 8), "uint4": (0, 16), "int8": (-128, 128), "uint8": (0, 256)}[kind]
    data = rng.integers(low, high, (6, 8))
    scale, offset = rng.uniform(0.01, 0.1, blocks).astype(dtype), rng.integers(max(low, -8), min(high, 8), blocks)
    options = {"offset": typed(mil, offset, kind)} if shifted else {}
    build = lambda: mil.mb.constexpr_blockwise_shift_scale(  # noqa: E731
        data=typed(mil, data, kind), scale=scale, **options
    )
    got, own = decompressed(mil, "constexpr_blockwise_shift_scale", build)
    want = np.zeros(data.shape)
    for i, j in np.ndindex(*data.shape):
        block = i * blocks[0] // 6, j * blocks[1] // 8
        want[i, j] = float(scale[block]) * (data[i, j] - (offset[block] if shifted else 0))
    agree(got, want, own, dtype)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("groups", [(1, 1), (2, 1), (2, 3)])
def test_grouped_palette_of_ios18(mil, rng, bits, groups):
    indices, lut = rng.integers(0, 2**bits, (4, 6)), rng.normal(size=(*groups, 2**bits, 1)).astype(np.float32)
    build = lambda: mil.mb.constexpr_lut_to_dense(  # noqa: E731
        indices=typed(mil, indices, f"uint{bits}"), lut=lut
    )
    got, own = decompressed(mil, "constexpr_lut_to_dense", build)
    want = [[lut[i * groups[0] // 4, j * groups[1] // 6, indices[i, j], 0] for j in range(6)] for i in range(4)]
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(got, own)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("groups", [(1, 1), (2, 1)])
def test_vector_palette(mil, rng, axis, groups):
    indices, lut = rng.integers(0, 4, (4, 6)), rng.normal(size=(*groups, 4, 3)).astype(np.float16)
    build = lambda: mil.mb.constexpr_lut_to_dense(  # noqa: E731
        indices=typed(mil, indices, "uint2"), lut=lut, vector_axis=axis
    )
    got, own = decompressed(mil, "constexpr_lut_to_dense", build)
    want = np.zeros((12, 6) if axis == 0 else (4, 18))
    for i, j in np.ndindex(4, 6):
        vector = lut[i * groups[0] // 4, 0, indices[i, j]]
        if axis == 0:
            want[3 * i : 3 * i + 3, j] = vector
        else:
            want[i, 3 * j : 3 * j + 3] = vector
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(got, own)


def test_sparsity_of_ios18(mil, rng):
    dense = (rng.normal(size=(3, 7)) * (rng.random((3, 7)) > 0.6)).astype(np.float16)
    build = lambda: mil.mb.constexpr_sparse_to_dense(  # noqa: E731
        nonzero_data=dense[dense != 0], mask=typed(mil, (dense != 0).astype(np.uint8), "uint1")
    )
    got, own = decompressed(mil, "constexpr_sparse_to_dense", build)
    np.testing.assert_array_equal(got, dense)
    np.testing.assert_array_equal(got, own)


@pytest.mark.parametrize("vector", [1, 2])
def test_sparse_palette_feeds_a_sparse_tensor(mil, rng, vector):
    mask = (rng.random((4, 6)) > 0.5).astype(np.uint8)
    indices, lut = rng.integers(0, 4, int(mask.sum())), rng.normal(size=(1, 1, 4, vector)).astype(np.float32)
    options = {"vector_axis": 0} if vector > 1 else {}

    def build():
        spread_mask, values = mil.mb.constexpr_lut_to_sparse(
            indices_mask=typed(mil, mask, "uint1"),
            indices_nonzero_data=typed(mil, indices, "uint2"),
            lut=lut,
            **options,
        )
        return mil.mb.constexpr_sparse_to_dense(nonzero_data=values, mask=spread_mask)

    got, own = decompressed(mil, "constexpr_lut_to_sparse", build)
    want, flat = np.zeros((4 * vector, 6), np.float32), iter(indices)
    for i, j in itertools.product(range(4), range(6)):
        if mask[i, j]:
            want[vector * i : vector * (i + 1), j] = lut[0, 0, next(flat)]
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(got, own)


@pytest.mark.parametrize("shifted", [True, False])
def test_sparse_blockwise_feeds_a_sparse_tensor(mil, rng, shifted):
    mask = (rng.random((4, 6)) > 0.5).astype(np.uint8)
    data = rng.integers(-8, 8, int(mask.sum()))
    scale, offset = rng.uniform(0.1, 1, (1, 3)).astype(np.float32), rng.integers(-4, 4, (1, 3))
    options = {"offset": typed(mil, offset, "int4")} if shifted else {}

    def build():
        spread_mask, values = mil.mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=typed(mil, mask, "uint1"), nonzero_data=typed(mil, data, "int4"), scale=scale, **options
        )
        return mil.mb.constexpr_sparse_to_dense(nonzero_data=values, mask=spread_mask)

    got, own = decompressed(mil, "constexpr_sparse_blockwise_shift_scale", build)
    want, flat = np.zeros((4, 6)), iter(data)
    for i, j in itertools.product(range(4), range(6)):
        if mask[i, j]:
            want[i, j] = scale[0, j // 2] * (next(flat) - (offset[0, j // 2] if shifted else 0))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(got, own, rtol=1e-6)


def test_a_palette_of_quantised_values(mil, rng):
    """Joint compression: the table is int8 and is scaled after the look-up."""
    indices, lut = rng.integers(0, 4, (4, 6)), rng.integers(-128, 128, (1, 1, 4, 1)).astype(np.int8)
    scale = rng.uniform(0.01, 0.1, (4, 1)).astype(np.float32)

    def build():
        dense = mil.mb.constexpr_lut_to_dense(indices=typed(mil, indices, "uint2"), lut=lut)
        return mil.mb.constexpr_blockwise_shift_scale(data=dense, scale=scale)

    got, own = decompressed(mil, "constexpr_blockwise_shift_scale", build)
    np.testing.assert_allclose(got, lut[0, 0, indices, 0] * scale, rtol=1e-6)
    np.testing.assert_allclose(got, own, rtol=1e-6)


def test_weights_may_be_decompressed_on_every_run_instead_of_kept(mil, rng):
    data = rng.integers(-128, 128, (3, 4)).astype(np.int8)

    def build(x):
        weight = mil.mb.constexpr_affine_dequantize(
            quantized_data=data, zero_point=np.int8(0), scale=np.float32(0.1), axis=0
        )
        return mil.mb.linear(x=x, weight=weight)

    x = rng.normal(size=(2, 4)).astype(np.float32)
    program = mil.build(build, [x])
    kept, fresh = from_mil(program), from_mil(program, keep_weights=False)
    (one,), (other,) = (each.run({"x": x}).values() for each in (kept, fresh))  # coremltools counts names up
    np.testing.assert_array_equal(one, other)
    assert kept._plan.constant_steps and not fresh._plan.constant_steps
