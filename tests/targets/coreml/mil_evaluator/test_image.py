"""Resizing and resampling against direct loops over the documented grid formulas, and against PyTorch where it has the
same operation. Examples whose values are given in the op set's documentation are checked literally."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from deploykit_targets.coreml.mil_evaluator import EvaluationError

CLOSE = {"rtol": 2e-5, "atol": 2e-5}
MODES = ["STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS"]


def grid(mode, size_in, size_out):
    """Grid points of one axis, word for word from the documentation of resize_bilinear."""
    points = []
    for i in range(size_out):
        if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
            if size_out == 1:
                points.append((size_in - 1) / 2 if mode == "ALIGN_CORNERS" else 0.0)
                continue
            spacing, start = (size_in - 1) / (size_out - 1), 0.0
        elif mode == "DEFAULT":
            spacing, start = (size_in - size_in / size_out) / (size_out - 1) if size_out > 1 else 0.0, 0.0
        elif mode == "OFFSET_CORNERS":
            spacing = max(1, size_in - 1) / size_out
            start = 0.5 * spacing
        else:
            spacing = size_in / size_out
            start = 0.5 * spacing - 0.5
        points.append(min(size_in - 1, max(0, start + i * spacing)))
    return points


def sample_line(line, point):
    low = min(math.floor(point), len(line) - 1)
    high = min(low + 1, len(line) - 1)
    return line[low] + (line[high] - line[low]) * (point - low)


def resize_last(x, points, nearest=False):
    flat = x.reshape(-1, x.shape[-1]).astype(np.float64)
    take = (lambda line, p: line[min(math.floor(p + 0.5), len(line) - 1)]) if nearest else sample_line
    return np.array([[take(line, p) for p in points] for line in flat]).reshape(*x.shape[:-1], len(points))


def resize_two(x, mode, height, width, nearest=False):
    x = resize_last(x, grid(mode, x.shape[-1], width), nearest)
    x = resize_last(np.swapaxes(x, -1, -2), grid(mode, x.shape[-2], height), nearest)
    return np.swapaxes(x, -1, -2)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(7, 10), (3, 2), (1, 1), (4, 5)])
def test_resize_bilinear(mil, rng, mode, size):
    x = rng.normal(size=(2, 2, 4, 5)).astype(np.float32)
    build = lambda x: mil.mb.resize_bilinear(  # noqa: E731
        x=x, target_size_height=size[0], target_size_width=size[1], sampling_mode=mode
    )
    np.testing.assert_allclose(mil.evaluate("resize_bilinear", build, x), resize_two(x, mode, *size), **CLOSE)


@pytest.mark.parametrize(
    ("mode", "want"),
    [
        ("UNALIGN_CORNERS", [0, 0.1, 0.5, 0.9, 1]),
        ("STRICT_ALIGN_CORNERS", [0, 0.25, 0.5, 0.75, 1]),
        ("DEFAULT", [0, 0.4, 0.8, 1, 1]),
        ("OFFSET_CORNERS", [0.1, 0.3, 0.5, 0.7, 0.9]),
    ],
)
def test_the_documented_grid_of_two_pixels(mil, mode, want):
    x = np.array([0, 1], np.float32).reshape(1, 1, 2)
    build = lambda x: mil.mb.resize_bilinear(  # noqa: E731
        x=x, target_size_height=1, target_size_width=5, sampling_mode=mode
    )
    np.testing.assert_allclose(mil.evaluate("resize_bilinear", build, x).ravel(), want, **CLOSE)


@pytest.mark.parametrize("interpolation", ["LINEAR", "NEAREST_NEIGHBOR"])
@pytest.mark.parametrize("mode", MODES)
def test_resize(mil, rng, mode, interpolation):
    x = rng.normal(size=(1, 2, 3, 4)).astype(np.float32)
    shape = np.array([9, 7, 5], np.int32)  # more entries than resized axes: the last ones count

    def build(x, s):
        return mil.mb.resize(
            x=x, shape=s, resized_dims=np.uint32(2), interpolation_mode=interpolation, sampling_mode=mode
        )

    want = resize_two(x, mode, 7, 5, nearest=interpolation != "LINEAR")
    np.testing.assert_allclose(mil.evaluate("resize", build, x, shape), want, **CLOSE)


def test_resize_keeps_sizes_given_as_zero_and_any_number_of_axes(mil, rng):
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    build = lambda x: mil.mb.resize(x=x, shape=[6, 0, 8], resized_dims=np.uint32(3))  # noqa: E731
    got = mil.evaluate("resize", build, x)
    assert got.shape == (2, 6, 4, 8)
    moved = np.moveaxis(resize_last(x, grid("DEFAULT", 5, 8)), 1, -1)
    np.testing.assert_allclose(got, np.moveaxis(resize_last(moved, grid("DEFAULT", 3, 6)), -1, 1), **CLOSE)


@pytest.mark.parametrize("factors", [(2, 3), (1.5, 2.4), (0.5, 0.75)])
@pytest.mark.parametrize("align", [True, False])
def test_upsample_bilinear_is_pytorch_with_a_recomputed_factor(mil, rng, factors, align):
    x = rng.normal(size=(1, 2, 6, 8)).astype(np.float32)
    build = lambda x: mil.mb.upsample_bilinear(  # noqa: E731
        x=x, scale_factor_height=factors[0], scale_factor_width=factors[1], align_corners=align
    )
    want = F.interpolate(
        torch.from_numpy(x),
        scale_factor=factors,
        mode="bilinear",
        align_corners=align,
        recompute_scale_factor=True,
    )
    np.testing.assert_allclose(mil.evaluate("upsample_bilinear", build, x), want.numpy(), **CLOSE)


def test_upsample_bilinear_without_half_pixels(mil, rng):
    x = rng.normal(size=(1, 1, 3, 4)).astype(np.float32)
    build = lambda x: mil.mb.upsample_bilinear(  # noqa: E731
        x=x, scale_factor_height=2, scale_factor_width=2, align_corners=False, half_pixel_centers=False
    )
    got = mil.evaluate("upsample_bilinear", build, x, opset="iOS16")
    np.testing.assert_allclose(got, resize_two(x, "DEFAULT", 6, 8), **CLOSE)


@pytest.mark.parametrize("factors", [(2, 3), (1, 4), (3.17, 0.67), (1.5, 1.12)])
def test_upsample_nearest(mil, rng, factors):
    x = rng.normal(size=(1, 2, 6, 3)).astype(np.float32)
    build = lambda x: mil.mb.upsample_nearest_neighbor(  # noqa: E731
        x=x, scale_factor_height=factors[0], scale_factor_width=factors[1]
    )
    sizes = [math.floor(n * np.float32(f)) for n, f in zip((6, 3), factors, strict=True)]
    want = F.interpolate(torch.from_numpy(x), size=sizes, mode="nearest").numpy()
    np.testing.assert_array_equal(mil.evaluate("upsample_nearest_neighbor", build, x), want)


@pytest.mark.parametrize("size", [(8, 6), (3, 5), (1, 1)])
def test_resize_nearest_has_half_pixel_centres(mil, rng, size):
    x = rng.normal(size=(1, 2, 4, 6)).astype(np.float32)
    build = lambda x: mil.mb.resize_nearest_neighbor(  # noqa: E731
        x=x, target_size_height=size[0], target_size_width=size[1]
    )
    want = F.interpolate(torch.from_numpy(x), size=size, mode="nearest-exact").numpy()
    np.testing.assert_array_equal(mil.evaluate("resize_nearest_neighbor", build, x), want)


# --- crop and resize ----------------------------------------------------------------------------------------------


def crop_reference(image, box, size, mode, pad):
    """image (C, H, W), box in pixels (top, left, bottom, right)."""
    result = np.zeros((image.shape[0], *size))
    lines = []
    for low, high, count in ((box[0], box[2], size[0]), (box[1], box[3], size[1])):
        span = high - low
        if mode == "ALIGN_CORNERS" and count == 1:
            lines.append([(low + high) / 2])
        elif mode in ("ALIGN_CORNERS", "STRICT_ALIGN_CORNERS"):
            lines.append([low + i * span / (count - 1) for i in range(count)])
        else:
            lines.append([low + p for p in grid_of_span(mode, span, count)])
    for i, row in enumerate(lines[0]):
        for j, column in enumerate(lines[1]):
            if not (0 <= row <= image.shape[1] - 1 and 0 <= column <= image.shape[2] - 1):
                result[:, i, j] = pad
                continue
            for c in range(image.shape[0]):
                result[c, i, j] = sample_line([sample_line(line, column) for line in image[c]], row)
    return result


def grid_of_span(mode, span, count):
    size = span + 1
    if mode == "DEFAULT":
        points = [i * size / count for i in range(count)]
    elif mode == "UNALIGN_CORNERS":
        points = [(i + 0.5) * size / count - 0.5 for i in range(count)]
    else:
        points = [(i + 0.5) * max(1, span) / count for i in range(count)]
    return [min(span, max(0, p)) for p in points]


BOXES = np.array([[0.5, 1.0, 3.25, 4.0], [0, 0, 4, 5], [2, 1, 3.5, 2.5]], np.float32)


@pytest.mark.parametrize(
    ("mode", "size"),
    [*((mode, (3, 4)) for mode in MODES), *((mode, (1, 1)) for mode in MODES if mode != "STRICT_ALIGN_CORNERS")],
)
def test_crop_resize_since_ios17(mil, rng, mode, size):
    x = rng.normal(size=(2, 2, 5, 6)).astype(np.float32)
    which = np.array([1, 0, 1], np.int32)

    def build(x, boxes):
        return mil.mb.crop_resize(
            x=x, boxes=boxes, box_indices=which, target_height=size[0], target_width=size[1], sampling_mode=mode
        )

    want = [crop_reference(x[i], box, size, mode, 0.0) for i, box in zip(which, BOXES, strict=True)]
    np.testing.assert_allclose(mil.evaluate("crop_resize", build, x, BOXES), np.stack(want), **CLOSE)


@pytest.mark.parametrize("order", ["HEIGHT", "WIDTH"])
@pytest.mark.parametrize("kind", ["CORNERS", "CENTER_SIZE"])
def test_box_conventions_normalisation_and_scale(mil, rng, kind, order):
    x = rng.normal(size=(1, 1, 5, 6)).astype(np.float32)
    boxes = np.array([[0.1, 0.2, 0.8, 0.9], [0.9, 0.6, 0.2, 0.1]])  # top, left, bottom, right
    coded = (
        boxes
        if kind == "CORNERS"
        else np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
    )
    coded = (coded if order == "HEIGHT" else coded[:, [1, 0, 3, 2]]).astype(np.float32)

    def build(x, b):
        return mil.mb.crop_resize(
            x=x, boxes=b, box_indices=np.zeros(2, np.int32), target_height=3, target_width=2,
            normalized_coordinates=True, spatial_scale=0.5,
            box_coordinate_mode=f"{kind}_{order}_FIRST", sampling_mode="ALIGN_CORNERS",
        )  # fmt: skip

    pixels = boxes * 0.5 * [4, 5, 4, 5]
    want = np.stack([crop_reference(x[0], box, (3, 2), "ALIGN_CORNERS", 0.0) for box in pixels])
    np.testing.assert_allclose(mil.evaluate("crop_resize", build, x, coded), want, **CLOSE)


def test_points_off_the_image_take_the_pad_value(mil):
    x = np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4)
    boxes = np.array([[-1, 0, 2, 4.5]], np.float32)
    build = lambda x, b: mil.mb.crop_resize(  # noqa: E731
        x=x, boxes=b, target_height=2, target_width=2, sampling_mode="ALIGN_CORNERS", pad_value=np.float32(10)
    )
    np.testing.assert_allclose(mil.evaluate("crop_resize", build, x, boxes).ravel(), [10, 10, 9, 10])


@pytest.mark.parametrize("opset", ["iOS15", "iOS16"])
def test_crop_resize_before_ios17(mil, rng, opset):
    x = rng.normal(size=(2, 2, 5, 6)).astype(np.float32)
    options = {"target_height": 3, "target_width": 4, "sampling_mode": "ALIGN_CORNERS"}
    everywhere = BOXES.reshape(3, 1, 4, 1, 1)
    got = mil.evaluate(
        "crop_resize", lambda x, r: mil.mb.crop_resize(x=x, roi=r, **options), x, everywhere, opset=opset
    )
    want = [[crop_reference(image, box, (3, 4), "ALIGN_CORNERS", 0.0) for image in x] for box in BOXES]
    np.testing.assert_allclose(got, np.array(want), **CLOSE)


def test_crop_resize_with_an_image_index_in_the_box(mil, rng):
    x = rng.normal(size=(1, 2, 5, 6)).astype(np.float32)
    options = {"target_height": 3, "target_width": 4, "sampling_mode": "ALIGN_CORNERS"}
    roi = np.concatenate([np.zeros((3, 1), np.float32), BOXES], 1).reshape(3, 1, 5, 1, 1)
    got = mil.evaluate("crop_resize", lambda x, r: mil.mb.crop_resize(x=x, roi=r, **options), x, roi, opset="iOS15")
    want = [[crop_reference(x[0], box, (3, 4), "ALIGN_CORNERS", 0.0)] for box in BOXES]
    np.testing.assert_allclose(got, np.array(want), **CLOSE)
    wrong = roi.copy()
    wrong[1, 0, 0] = 4
    with pytest.raises(EvaluationError, match="image"):
        mil.evaluate("crop_resize", lambda x, r: mil.mb.crop_resize(x=x, roi=r, **options), x, wrong, opset="iOS15")


# --- resampling ---------------------------------------------------------------------------------------------------


def padded_pixel(image, row, column, padding, value):
    """Pixel of an image that is padded endlessly, by walking the documented patterns."""
    place = []
    for start, size in ((row, image.shape[0]), (column, image.shape[1])):
        at = start
        if padding == "constant" and not 0 <= at < size:
            return value
        while not 0 <= at < size:
            if padding == "border":
                at = min(max(at, 0), size - 1)
            elif padding == "reflection":
                at = -at if at < 0 else 2 * (size - 1) - at
            else:
                at = -1 - at if at < 0 else 2 * size - 1 - at
        place.append(at)
    return image[tuple(place)]


def resample_reference(x, coordinates, sampling, padding, value, mode, align):
    out = np.zeros((*x.shape[:2], *coordinates.shape[1:3]))
    for b, i, j in np.ndindex(*coordinates.shape[:3]):
        at = []
        for given, size in zip(coordinates[b, i, j].astype(float), (x.shape[3], x.shape[2]), strict=True):
            c = given
            if mode != "unnormalized":
                unit = (c + 1) / 2 if mode == "normalized_minus_one_to_one" else c
                c = unit * (size - 1) if align else unit * size - 0.5
            at.append(c)
        for channel in range(x.shape[1]):
            image = x[b, channel]
            if sampling == "nearest":
                out[b, channel, i, j] = padded_pixel(image, round(at[1]), round(at[0]), padding, value)
                continue
            left, top = math.floor(at[0]), math.floor(at[1])
            for dy, wy in ((0, 1 - at[1] + top), (1, at[1] - top)):
                for dx, wx in ((0, 1 - at[0] + left), (1, at[0] - left)):
                    out[b, channel, i, j] += wy * wx * padded_pixel(image, top + dy, left + dx, padding, value)
    return out


@pytest.mark.parametrize("padding", ["constant", "border", "reflection", "symmetric"])
@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
@pytest.mark.parametrize("mode", ["unnormalized", "normalized_minus_one_to_one", "normalized_zero_to_one"])
@pytest.mark.parametrize("align", [True, False])
def test_resample(mil, rng, padding, sampling, mode, align):
    x = rng.normal(size=(2, 2, 4, 5)).astype(np.float32)
    span = 7 if mode == "unnormalized" else 2
    coordinates = rng.uniform(-span, span, (2, 3, 6, 2)).astype(np.float32)
    value = np.float32(6.17)

    def build(x, c):
        return mil.mb.resample(
            x=x, coordinates=c, sampling_mode=sampling, padding_mode=padding, padding_value=value,
            coordinates_mode=mode, align_corners=align,
        )  # fmt: skip

    got = mil.evaluate("resample", build, x, coordinates)
    want = resample_reference(x, coordinates, sampling, padding, float(value), mode, align)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_resample_agrees_with_grid_sample(mil, rng, padding, align):
    x, points = (
        rng.normal(size=(1, 2, 4, 5)).astype(np.float32),
        rng.uniform(-1.5, 1.5, (1, 3, 3, 2)).astype(np.float32),
    )

    def build(x, c):
        return mil.mb.resample(
            x=x, coordinates=c, sampling_mode="bilinear", padding_mode="constant" if padding == "zeros" else padding,
            padding_value=np.float32(0), coordinates_mode="normalized_minus_one_to_one", align_corners=align,
        )  # fmt: skip

    want = F.grid_sample(torch.from_numpy(x), torch.from_numpy(points), padding_mode=padding, align_corners=align)
    np.testing.assert_allclose(mil.evaluate("resample", build, x, points), want.numpy(), rtol=1e-4, atol=1e-5)


def test_resample_with_integer_coordinates(mil, rng):
    x, points = rng.normal(size=(1, 1, 3, 3)).astype(np.float32), np.array([[[[0, 2], [1, 1]]]], np.uint8)

    def build(x, c):
        return mil.mb.resample(
            x=x, coordinates=c, sampling_mode="bilinear", padding_mode="border", padding_value=np.float32(0),
            coordinates_mode="unnormalized", align_corners=True,
        )  # fmt: skip

    np.testing.assert_array_equal(mil.evaluate("resample", build, x, points).ravel(), [x[0, 0, 2, 0], x[0, 0, 1, 1]])


@pytest.mark.parametrize("size", [(3, 3), (2, 5), (6, 4)])
@pytest.mark.parametrize("batches", [1, 2])
def test_affine_agrees_with_pytorch(mil, rng, size, batches):
    x = rng.normal(size=(2, 2, 4, 5)).astype(np.float32)
    matrix = (rng.normal(size=(batches, 6)) * 0.7).astype(np.float32)

    def build(x, m):
        return mil.mb.affine(
            x=x, transform_matrix=m, output_height=size[0], output_width=size[1], sampling_mode="bilinear",
            padding_mode="constant", padding_value=np.float32(0), align_corners=True,
            coordinates_mode="normalized_minus_one_to_one",
        )  # fmt: skip

    theta = torch.from_numpy(np.broadcast_to(matrix, (2, 6)).reshape(2, 2, 3).copy())
    where = F.affine_grid(theta, [2, 2, *size], align_corners=True)
    want = F.grid_sample(torch.from_numpy(x), where, align_corners=True)
    np.testing.assert_allclose(mil.evaluate("affine", build, x, matrix), want.numpy(), rtol=1e-4, atol=1e-5)
