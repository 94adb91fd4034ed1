"""`deploykit sensitivity`: which layers make the noise of a quantised model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.cli.output import Answer
from deploykit.cli.parameters import Debug, Json, Options, check_calibration, parse_options, search_current_folder

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deploykit_calibration.sensitivity import Candidate, Sensitivity


def sensitivity(
    model: Annotated[
        str,
        typer.Argument(
            metavar="PACKAGE.MODULE:FACTORY",
            help="Function that returns the model, or model and example inputs; the current folder is searched, too.",
        ),
    ],
    target: Annotated[
        str, typer.Option(help="Device, toolchain, or device:toolchain; see `deploykit targets`.")
    ] = "x86-cpu",
    precision: Annotated[str, typer.Option(help="A precision that rounds: int8, fp8, int4-weight-only.")] = "int8",
    calibration: Annotated[
        str | None,
        typer.Option(metavar="FILE", help=".npz or .safetensors with an array per input, or `synthetic`."),
    ] = None,
    method: Annotated[
        str, typer.Option(help="How ranges are chosen: default, best, minmax, percentile, entropy or mse.")
    ] = "default",
    include: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Quantise only these layers; repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Keep these layers in float; repeatable.")
    ] = None,
    algorithm: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Run this algorithm over the prepared model; repeatable.")
    ] = None,
    option: Options = None,
    dynamic_batch: Annotated[bool, typer.Option("--dynamic-batch", help="Keep axis 0 of every input dynamic.")] = False,
    top: Annotated[int, typer.Option(min=1, help="Layers and candidates shown on the page; --json has all.")] = 20,
    cache_dir: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Keep calibration statistics here, and reuse them.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Rank a model's layers by what their rounding does to its outputs, and show what keeping some in float would buy.

    Nothing is exported. SQNR is predicted from gradients; costs are of the device table, and no latency.
    """
    options = parse_options(option or ())
    check_calibration(calibration)
    search_current_folder()

    from deploykit_tuning.sensitivity import sensitivity as rank

    found = rank(
        model,
        target,
        calibration,
        precision=precision,
        calibration_method=method,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        options=options or None,
        dynamic_batch=dynamic_batch,
        cache_dir=cache_dir,
        algorithms=tuple(algorithm or ()),
    )
    return Answer({"target": target, "precision": precision, **found.to_dict()}, _page(found, top))


def _page(found: Sensitivity, top: int) -> Sequence[RenderableType]:
    from deploykit.cli.tables import grid

    layers = grid(
        f"{found.sqnr_db:.1f} dB, simulated on {found.samples} sample(s)",
        ("layer", "kind", "share of noise", "gain dB", f"cost ({found.costs.unit})", "alone", "gradient"),
        (
            (
                each.module_path or each.name,
                each.kind,
                f"{each.share:.1%}",
                f"{each.gain_db:.2f}",
                f"{each.cost:.3g}",
                f"{each.alone:.1%}",
                f"{each.gradient:.1%}",
            )
            for each in found.layers[:top]
        ),
        right=("share of noise", "gain dB", f"cost ({found.costs.unit})", "alone", "gradient"),
    )
    candidates = grid(
        f"layers kept in {found.costs.rest}, predicted",
        ("kept", "SQNR dB", f"cost ({found.costs.unit})", "quantised MACs"),
        (
            (str(len(each.kept)), f"{each.sqnr_db:.1f}", f"{each.cost:.4g}", f"{each.quantized_share:.1%}")
            for each in _thinned(found.front(), top)
        ),
        right=("kept", "SQNR dB", f"cost ({found.costs.unit})", "quantised MACs"),
    )
    left = len(found.layers) - top
    return [layers, *([f"and {left} more layers: --json has all"] if left > 0 else []), candidates]


def _thinned(candidates: Sequence[Candidate], most: int) -> Sequence[Candidate]:
    """Evenly spaced ones of a long front, both ends among them."""
    if len(candidates) <= most:
        return candidates
    step = (len(candidates) - 1) / max(most - 1, 1)
    return [candidates[round(at * step)] for at in range(most)]
