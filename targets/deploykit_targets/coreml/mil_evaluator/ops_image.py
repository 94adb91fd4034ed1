"""MIL image ops: resizing, cropping with resizing, resampling, affine warps.

All linear resizing is one rule per axis: a list of grid points in source pixels (the documented formulas of each
sampling mode), then linear interpolation between the two neighbours. Nearest neighbour takes floor(point + 0.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from deploykit_targets.coreml.mil_evaluator.operation import Context, Op, ints, moves, rounds

# --- grids ----------------------------------------------------------------------------------------------------


def grid_points(mode: str, span: Tensor, count: int) -> Tensor:
    """Where to sample an axis, relative to its first pixel.

    Args:
        mode: MIL sampling mode.
        span: float64, any shape: distance between first and last pixel (source size - 1); negative when flipped.
        count: number of points.
    Returns:
        float64, shape (*span.shape, count), within [0, span].
    Raises:
        ValueError: unknown mode.
    """
    i = torch.arange(count, dtype=torch.float64)
    wide = span[..., None]
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if count == 1:
            return wide / 2 if mode == "ALIGN_CORNERS" else torch.zeros_like(wide)
        return wide * (i / (count - 1))
    size = wide + 1
    if mode == "DEFAULT":
        points = i * size / count
    elif mode == "UNALIGN_CORNERS":
        points = (i + 0.5) * size / count - 0.5
    elif mode == "OFFSET_CORNERS":
        points = (i + 0.5) * wide.clamp_min(1) / count
    else:
        raise ValueError(f"unknown sampling mode {mode!r}")
    return torch.minimum(torch.maximum(points, wide.clamp_max(0)), wide.clamp_min(0))


def _axis_points(mode: str, size: int, count: int) -> Tensor:
    return grid_points(mode, torch.tensor(float(size - 1), dtype=torch.float64), count)


def _interpolate(x: Tensor, axis: int, points: Tensor) -> Tensor:
    """`x` sampled linearly at `points` (count,) along `axis`."""
    last = x.shape[axis] - 1
    low = points.floor().clamp(0, last)
    share = (points - low).to(torch.float32)
    low_index = low.to(torch.int64)
    shape = [1] * x.ndim
    shape[axis] = -1
    share = share.reshape(shape)
    before = x.index_select(axis, low_index)
    after = x.index_select(axis, (low_index + 1).clamp_max(last))
    return before + (after - before) * share


def _nearest(x: Tensor, axis: int, points: Tensor) -> Tensor:
    index = (points + 0.5).floor().to(torch.int64).clamp(0, x.shape[axis] - 1)
    return x.index_select(axis, index)


def _scaled(size: int, factor: float) -> int:
    """floor(size * factor) in float32, as the op set infers it."""
    return int(np.floor(np.float32(factor) * np.float32(size)))


# --- resizing -------------------------------------------------------------------------------------------------


def _resize_axes(x: Tensor, sizes: Sequence[int], mode: str, *, nearest: bool = False) -> Tensor:
    """Resize the last len(sizes) axes; integers are interpolated in float and truncated."""
    value = x if x.is_floating_point() or nearest else x.to(torch.float32)
    for axis, size in enumerate(sizes, start=x.ndim - len(sizes)):
        points = _axis_points(mode, x.shape[axis], size)
        value = (_nearest if nearest else _interpolate)(value, axis, points)
    return value.to(x.dtype)


def _resize_bilinear(x: Tensor, target_size_height: int, target_size_width: int, sampling_mode: str) -> Tensor:
    return _resize_axes(x, (target_size_height, target_size_width), sampling_mode)


def _resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    """Half-pixel centres: floor((i + 0.5) * in / out)."""
    return _resize_axes(x, (target_size_height, target_size_width), "UNALIGN_CORNERS", nearest=True)


def _resize(
    x: Tensor,
    shape: Tensor,
    resized_dims: int,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """Resize the last `resized_dims` axes to the last entries of `shape`; 0 keeps the size."""
    wanted = ints(shape)[-resized_dims:] if resized_dims else []
    sizes = [size or x.shape[axis - len(wanted)] for axis, size in enumerate(wanted)]
    return _resize_axes(x, sizes, sampling_mode, nearest=interpolation_mode == "NEAREST_NEIGHBOR")


def _upsample_bilinear(
    x: Tensor,
    scale_factor_height: float,
    scale_factor_width: float,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """Sizes are floor(size * factor); the factor is then recomputed from the sizes."""
    centred = not align_corners if half_pixel_centers is None else half_pixel_centers
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS" if centred else "DEFAULT"
    sizes = (_scaled(x.shape[-2], scale_factor_height), _scaled(x.shape[-1], scale_factor_width))
    return _resize_axes(x, sizes, mode)


def _upsample_nearest_neighbor(x: Tensor, scale_factor_height: float, scale_factor_width: float) -> Tensor:
    """Source index floor(i * in / out), by integers."""
    for axis, factor in ((x.ndim - 2, scale_factor_height), (x.ndim - 1, scale_factor_width)):
        size = x.shape[axis]
        count = _scaled(size, factor)
        x = x.index_select(axis, torch.arange(count) * size // max(count, 1))
    return x


# --- crop and resize ------------------------------------------------------------------------------------------


def _corners(boxes: Tensor, mode: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(top, left, bottom, right), each (N,), of boxes (N, 4) in any coordinate convention.

    Raises:
        ValueError: unknown convention.
    """
    a, b, c, d = boxes.unbind(-1)
    if mode.endswith("WIDTH_FIRST"):
        a, b, c, d = b, a, d, c
    if mode.startswith("CENTER_SIZE"):
        return a - c / 2, b - d / 2, a + c / 2, b + d / 2
    if not mode.startswith("CORNERS"):
        raise ValueError(f"unknown box_coordinate_mode {mode!r}")
    return a, b, c, d


def _sample_lines(images: Tensor, axis: int, points: Tensor) -> Tensor:
    """Linear samples of images (N, C, H, W) along `axis` (2 or 3) at points (N, count), clamped to the image."""
    last = images.shape[axis] - 1
    low = points.floor().clamp(0, last)
    share = (points.clamp(0, last) - low).to(torch.float32)
    index = low.to(torch.int64)
    shape = [points.shape[0], 1, 1, 1]
    shape[axis] = points.shape[1]
    full = [*images.shape]
    full[axis] = points.shape[1]
    before = torch.gather(images, axis, index.reshape(shape).expand(full))
    after = torch.gather(images, axis, (index + 1).clamp_max(last).reshape(shape).expand(full))
    return before + (after - before) * share.reshape(shape)


def _crop_boxes(
    images: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    normalized: bool,
    spatial_scale: float,
    coordinates: str,
    mode: str,
    pad_value: float,
) -> Tensor:
    """One crop per image: images (N, C, H, W), boxes (N, 4) -> (N, C, *size). Points off the image give pad_value."""
    height, width = images.shape[-2:]
    top, left, bottom, right = (edge.double() * spatial_scale for edge in _corners(boxes, coordinates))
    if normalized:
        top, bottom = top * (height - 1), bottom * (height - 1)
        left, right = left * (width - 1), right * (width - 1)
    rows = top[:, None] + grid_points(mode, bottom - top, size[0])
    columns = left[:, None] + grid_points(mode, right - left, size[1])
    sampled = _sample_lines(_sample_lines(images, 2, rows), 3, columns)
    inside = _within(rows, height)[:, None, :, None] & _within(columns, width)[:, None, None, :]
    return torch.where(inside, sampled, torch.tensor(pad_value, dtype=sampled.dtype))


def _within(points: Tensor, size: int) -> Tensor:
    """Whether points lie on an axis of `size` pixels; float32 coordinates get a little slack at the ends."""
    slack = 1e-5 * max(1, size)
    return (points >= -slack) & (points <= size - 1 + slack)


def _crop_resize(
    x: Tensor,
    target_height: int,
    target_width: int,
    normalized_coordinates: bool,
    spatial_scale: float,
    box_coordinate_mode: str,
    sampling_mode: str,
    context: Context,
    pad_value: float = 0.0,
    roi: Tensor | None = None,
    boxes: Tensor | None = None,
    box_indices: Tensor | None = None,
) -> Tensor:
    """x (B, C, H, W). Since iOS17: boxes (N, 4), box_indices (N,) -> (N, C, h, w). Before: roi (N, 1, 4 or 5, 1, 1).

    Raises:
        EvaluationError: a box refers to an image that is not there.
    """
    size = (target_height, target_width)
    options = (normalized_coordinates, spatial_scale, box_coordinate_mode, sampling_mode, pad_value)
    if roi is not None:
        flat = roi.reshape(roi.shape[0], -1)
        if flat.shape[1] == 4:  # every box on every image
            crops = [_crop_boxes(x, box.expand(x.shape[0], 4), size, *options) for box in flat]
            return torch.stack(crops)
        images = x[_image_index(flat[:, 0], x.shape[0], context)]
        return _crop_boxes(images, flat[:, 1:], size, *options)[:, None]
    assert boxes is not None
    which = torch.arange(boxes.shape[0]) if box_indices is None else box_indices
    return _crop_boxes(x[_image_index(which, x.shape[0], context)], boxes.to(torch.float32), size, *options)


def _image_index(which: Tensor, count: int, context: Context) -> Tensor:
    index = which.to(torch.int64)
    if bool(((index < 0) | (index >= count)).any()):
        raise context.fail(f"a box refers to image {index.tolist()} of a batch of {count}")
    return index


# --- resampling -----------------------------------------------------------------------------------------------


def _to_pixels(coordinate: Tensor, size: int, mode: str, align_corners: bool) -> Tensor:
    """Coordinates in pixels, the centre of the first pixel at 0.

    Raises:
        ValueError: unknown coordinates mode.
    """
    if mode == "unnormalized":
        return coordinate
    if mode == "normalized_minus_one_to_one":
        coordinate = (coordinate + 1) / 2
    elif mode != "normalized_zero_to_one":
        raise ValueError(f"unknown coordinates_mode {mode!r}")
    return coordinate * (size - 1) if align_corners else coordinate * size - 0.5


def _wrapped(index: Tensor, size: int, padding: str) -> Tensor:
    """Pixel that stands at integer position `index` of the endlessly padded axis.

    Raises:
        ValueError: unknown padding mode.
    """
    if padding == "reflection":
        period = max(1, 2 * (size - 1))
        folded = index.remainder(period)
        return torch.minimum(folded, period - folded) if size > 1 else torch.zeros_like(index)
    if padding == "symmetric":
        folded = index.remainder(2 * size)
        return torch.minimum(folded, 2 * size - 1 - folded)
    if padding not in ("constant", "border"):
        raise ValueError(f"unknown padding_mode {padding!r}")
    return index.clamp(0, size - 1)


def _pixels(x: Tensor, rows: Tensor, columns: Tensor, padding: str, value: float) -> Tensor:
    """x (B, C, H, W) at integer positions rows, columns (B, h, w) of the padded image -> (B, C, h, w)."""
    batch, channels, height, width = x.shape
    flat = _wrapped(rows, height, padding) * width + _wrapped(columns, width, padding)
    index = flat.reshape(batch, 1, -1).expand(-1, channels, -1)
    taken = torch.gather(x.reshape(batch, channels, -1), 2, index).reshape(batch, channels, *rows.shape[1:])
    if padding != "constant":
        return taken
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return torch.where(inside[:, None], taken, torch.tensor(value, dtype=x.dtype))


def _sample(x: Tensor, horizontal: Tensor, vertical: Tensor, sampling: str, padding: str, value: float) -> Tensor:
    """x (B, C, H, W) at float64 pixel coordinates (B, h, w).

    Raises:
        ValueError: unknown sampling mode.
    """
    limit = 2.0**40  # far outside; keeps the integer arithmetic below safe
    horizontal, vertical = (torch.nan_to_num(c, nan=-limit).clamp(-limit, limit) for c in (horizontal, vertical))
    if sampling == "nearest":
        return _pixels(x, vertical.round().long(), horizontal.round().long(), padding, value)
    if sampling != "bilinear":
        raise ValueError(f"unknown sampling_mode {sampling!r}")
    top, left = vertical.floor(), horizontal.floor()
    down, across = (vertical - top).to(x.dtype)[:, None], (horizontal - left).to(x.dtype)[:, None]
    y, x0 = top.long(), left.long()
    upper = torch.lerp(_pixels(x, y, x0, padding, value), _pixels(x, y, x0 + 1, padding, value), across)
    lower = torch.lerp(_pixels(x, y + 1, x0, padding, value), _pixels(x, y + 1, x0 + 1, padding, value), across)
    return torch.lerp(upper, lower, down)


def _resample(
    x: Tensor,
    coordinates: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """x (B, C, H, W), coordinates (B, h, w, 2) as (x, y) -> (B, C, h, w)."""
    points = coordinates.double()
    height, width = x.shape[-2:]
    horizontal = _to_pixels(points[..., 0], width, coordinates_mode, align_corners)
    vertical = _to_pixels(points[..., 1], height, coordinates_mode, align_corners)
    return _sample(x, horizontal, vertical, sampling_mode, padding_mode, padding_value)


def _affine(
    x: Tensor,
    transform_matrix: Tensor,
    output_height: int,
    output_width: int,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """Warp by rows (a0, a1, a2, b0, b1, b2) over normalised output coordinates in [-1, 1]."""
    across, down = (_axis_span(count, align_corners) for count in (output_width, output_height))
    a0, a1, a2, b0, b1, b2 = (column[:, None, None] for column in transform_matrix.double().unbind(-1))
    horizontal = a0 * across + a1 * down[:, None] + a2
    vertical = b0 * across + b1 * down[:, None] + b2
    coordinates = torch.stack([horizontal, vertical], dim=-1)
    coordinates = coordinates.expand(x.shape[0], *coordinates.shape[1:])
    return _resample(
        x,
        coordinates,
        sampling_mode.lower(),
        padding_mode.lower(),
        padding_value,
        coordinates_mode.lower(),
        align_corners,
    )


def _axis_span(count: int, align_corners: bool) -> Tensor:
    """Normalised coordinates of `count` output pixels."""
    i = torch.arange(count, dtype=torch.float64)
    if not align_corners:
        return (2 * i + 1) / count - 1
    return 2 * i / (count - 1) - 1 if count > 1 else torch.zeros(1, dtype=torch.float64)


OPS: Final[dict[str, Op]] = {
    "affine": rounds(_affine),
    "crop_resize": rounds(_crop_resize, context=True),
    "resample": rounds(_resample),
    "resize": rounds(_resize),
    "resize_bilinear": rounds(_resize_bilinear),
    "resize_nearest_neighbor": moves(_resize_nearest_neighbor),
    "upsample_bilinear": rounds(_upsample_bilinear),
    "upsample_nearest_neighbor": moves(_upsample_nearest_neighbor),
}
"""Rules of this family, by MIL name."""
