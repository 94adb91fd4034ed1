"""Up- and down-sampling of images, and sampling at given points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from deploykit_targets._onnx.ops.table import Call, translates

_RANKS = (
    *(("nearest", axes) for axes in (1, 2, 3)),
    *(("linear", 1), ("bilinear", 2), ("trilinear", 3), ("bicubic", 2)),
)
_MODES = {"nearest": "nearest", "linear": "linear", "bilinear": "linear", "trilinear": "linear", "bicubic": "cubic"}


@translates(
    *(
        f"aten.upsample_{mode}{axes}d.{overload}"
        for mode, axes in _RANKS
        for overload in ("default", "vec")
    ),
    *(f"aten._upsample_nearest_exact{axes}d.{overload}" for axes in (1, 2, 3) for overload in ("default", "vec")),
)  # fmt: skip
def upsample(c: Call) -> str:
    """Resize to the size or by the factors the user gave, with PyTorch's pixel positions."""
    name = str(c.node.target)
    exact, stem = "nearest_exact" in name, name.split("upsample_")[1]
    mode = "nearest" if exact else _MODES[stem.split("d.")[0].rstrip("123")]
    value, sizes, scales = c.value("input" if "input" in c.arguments else "self"), "", ""
    factors = _factors(c)
    fixed = all(isinstance(size, int) for size in c.out.shape[2:])
    if factors is not None and (not fixed or all(float(factor).is_integer() for factor in factors)):
        scales = c.constant([1.0, 1.0, *factors], torch.float32)
    else:
        sizes = _sizes(c, value)
    where = "align_corners" if c.get("align_corners") else "asymmetric" if mode == "nearest" and not exact else (
        "half_pixel" if exact or mode == "cubic" else "pytorch_half_pixel")  # fmt: skip
    return c.op(
        "Resize", value, "", scales, sizes, mode=mode, coordinate_transformation_mode=where,
        nearest_mode=("round_prefer_ceil" if exact else "floor") if mode == "nearest" else None,
        cubic_coeff_a=-0.75 if mode == "cubic" else None,
    )  # fmt: skip


def _factors(c: Call) -> Sequence[float] | None:
    found = c.get("scale_factors")
    if found is not None:
        return list(found)
    names = [name for name in ("scales_d", "scales_h", "scales_w", "scales") if name in c.arguments]
    given = [c[name] for name in names]
    return given if given and all(factor is not None for factor in given) else None


def _sizes(c: Call, value: str) -> str:
    """Target sizes; a dynamic batch is taken from the input."""
    shape = c.out.shape
    if all(isinstance(size, int) for size in shape):
        return c.ints([int(size) for size in shape])
    spatial: Any = c.get("output_size", shape[2:])
    return c.op("Concat", c.op("Shape", value, start=0, end=2), c.shape(list(spatial)), axis=0)


@translates("aten.grid_sampler.default", "aten.grid_sampler_2d.default", "aten.grid_sampler_3d.default")
def grid_sample(c: Call) -> str:
    """GridSample; the modes have other names before opset 20."""
    modern = c.writer.opset >= 20
    modes = ("linear", "nearest", "cubic") if modern else ("bilinear", "nearest", "bicubic")
    return c.op(
        "GridSample", c.value("input"), c.value("grid"), mode=modes[c["interpolation_mode"]],
        padding_mode=("zeros", "border", "reflection")[c["padding_mode"]], align_corners=int(c["align_corners"]),
    )  # fmt: skip
