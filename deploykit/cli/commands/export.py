"""`deploykit export`: the pipeline from the command line."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.cli.output import Answer
from deploykit.cli.parameters import Debug, Json, NoProfile, NoStrict, Options, parse_options
from deploykit.contract.errors import CalibrationError

if TYPE_CHECKING:
    from deploykit.judge.parity import Tolerance

_SYNTHETIC = "synthetic"


def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="PACKAGE.MODULE:FACTORY",
            help="Function that returns the model, or model and example inputs; the current folder is searched, too.",
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(help="Device, toolchain, or device:toolchain; see `deploykit targets`.  [default: x86-cpu]"),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Such as fp32, fp16, int8, int8-dynamic.  [default: int8]")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Data for static precisions: .npz or .safetensors with an array per input, or `synthetic`.",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="Folder of the artifact.  [default: out/MODEL-TARGET-PRECISION]"),
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
    recipe: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Follow this recipe, as `deploykit tune` and `inspect --recipe` write them."),
    ] = None,
    option: Options = None,
    dynamic_batch: Annotated[bool, typer.Option("--dynamic-batch", help="Keep axis 0 of every input dynamic.")] = False,
    no_profile: NoProfile = False,
    no_strict: NoStrict = False,
    min_placement: Annotated[
        float | None, typer.Option(help="Share of multiply-accumulates, 0 to 1, that must run in the precision.")
    ] = None,
    min_speedup: Annotated[
        float | None, typer.Option(help="How many times faster than the float build it must be, measured here.")
    ] = None,
    min_sqnr_db: Annotated[
        float | None, typer.Option(help="Parity gate in dB, instead of the precision's default.")
    ] = None,
    min_cosine: Annotated[float | None, typer.Option(help="Parity gate, -1 to 1.")] = None,
    min_top1_agreement: Annotated[float | None, typer.Option(help="Parity gate, 0 to 1.")] = None,
    cache_dir: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Keep calibration statistics here, and reuse them.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Export a model and prove that the export is right.

    The artifact appears only when it is complete; an older one in its place is replaced.
    """
    options = parse_options(option or ())
    _check_calibration(calibration)
    from deploykit.pipeline.following import PRECISION, TARGET, aimed, opened

    followed = opened(recipe)
    target, precision = aimed(followed, target or TARGET, precision or PRECISION)
    tolerance = _tolerance(precision, min_sqnr_db, min_cosine, min_top1_agreement)
    _search_current_folder()

    from deploykit.cli.commands.compare import published, shown_path
    from deploykit.pipeline.export import export as run_export

    artifact = run_export(
        model,
        target,
        precision,
        calibration=calibration,
        calibration_method=method,
        dynamic_batch=dynamic_batch,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        options=options or None,
        tolerance=tolerance,
        min_placement=min_placement,
        min_speedup=min_speedup,
        profile=not no_profile,
        strict=not no_strict,
        output=output,
        cache_dir=cache_dir,
        algorithms=tuple(algorithm or ()),
        recipe=followed,
    )
    answer = published(artifact)
    build = artifact.manifest.build
    if build is None:
        return answer
    command = build.command_for(shown_path(artifact))
    page = [*answer.page, f"to finish it on {artifact.manifest.device}: {command}\n  because {build.reason}"]
    return replace(answer, document={**answer.document, "build_command": command}, page=page)


def _check_calibration(calibration: str | None) -> None:
    """Before the model is built, because that takes longest."""
    if calibration is not None and calibration != _SYNTHETIC and not Path(calibration).is_file():
        raise CalibrationError(
            f"there is no calibration file {calibration!r}",
            hint=f"pass an .npz or .safetensors file with one array per input, or `--calibration {_SYNTHETIC}`",
        )


def _tolerance(
    precision: str, min_sqnr_db: float | None, min_cosine: float | None, min_top1: float | None
) -> Tolerance | None:
    """The default gate of the precision with the given figures in it; None where none was given."""
    given = {"min_sqnr_db": min_sqnr_db, "min_cosine": min_cosine, "min_top1_agreement": min_top1}
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes:
        return None
    from deploykit.contract.precision import known
    from deploykit.judge.parity import Tolerance, tolerance_of

    found = known(precision)
    return replace(Tolerance() if found is None else tolerance_of(found), **changes)


def _search_current_folder() -> None:
    """An installed program does not search the folder it is called in, where the user's modules are."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
