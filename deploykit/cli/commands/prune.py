"""`deploykit prune`: remove channels or weights of a model, and write what is left beside the report.

The folder has `weights.safetensors`, the pruned model's `state_dict`, and `report.json`. A model of the same factory
takes them: `deploykit_training.pruning.replay` removes the channels that `removed` of the report names, zeros are in
the weights. No module is pickled.
"""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.artifact.storage import publish_folder, staging_folder
from deploykit.cli.output import Answer
from deploykit.cli.parameters import (
    Calibration,
    Debug,
    Json,
    MinSpeedup,
    Model,
    check_calibration,
    search_current_folder,
)
from deploykit.contract.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    from torch import nn

WEIGHTS, REPORT = "weights.safetensors", "report.json"


def prune(
    model: Model,
    ratio: Annotated[float, typer.Option(help="Share of channels or weights that goes, above 0 and below 1.")] = 0.5,
    kind: Annotated[str, typer.Option(help="structured (channels), unstructured or 2:4.")] = "structured",
    scope: Annotated[str, typer.Option(help="Whose ratio it is: layer, global or sensitivity.")] = "layer",
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="PATTERN", help="These layers lose nothing; repeatable.")
    ] = None,
    calibration: Calibration = None,
    target: Annotated[
        str | None, typer.Option(help="What channel counts are rounded for, and where --profile measures.")
    ] = None,
    precision: Annotated[str, typer.Option(help="What --profile measures in.")] = "fp32",
    round_to: Annotated[int | None, typer.Option(min=1, help="Channel counts become multiples of it.")] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Export before and after, and measure both.")] = False,
    min_speedup: MinSpeedup = None,
    output: Annotated[
        str, typer.Option("--output", "-o", help="New folder for the weights and the report.")
    ] = "pruned",
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Prune a model, prove that what is left computes the same where only masked channels went, and write it.

    What is left is to be trained (`deploykit.distill`, your own loop); nothing is exported.
    """
    check_calibration(calibration)
    folder = Path(output)
    if folder.exists():
        raise UsageError(f"{folder} is there already", hint="-o NEW_FOLDER")
    search_current_folder()

    from deploykit.capture.sources import load_model
    from deploykit_training.pruning import prune as pruned

    found, example = load_model(model)
    report = pruned(
        found,  # type: ignore[arg-type]
        example,
        ratio,
        kind,
        calibration=calibration,
        scope=scope,
        exclude=tuple(exclude or ()),
        target=target,
        precision=precision,
        round_to=round_to,
        profile=profile,
        min_speedup=min_speedup,
    )
    report.finish()
    assert report.model is not None
    _write(folder, report.model, report.to_dict())
    return Answer(
        {"output": str(folder), **report.to_dict()}, [str(report), f"written to {folder}: {WEIGHTS}, {REPORT}"]
    )


def _write(folder: Path, model: nn.Module, report: dict[str, object]) -> None:
    from safetensors.torch import save_file

    weights = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    with staging_folder(folder, _leave_alone) as staging:
        save_file(weights, staging / WEIGHTS)
        (staging / REPORT).write_text(json_format.dumps(report, indent=1) + "\n", encoding="utf-8")
        publish_folder(staging, folder, _leave_alone)


def _leave_alone(folder: Path) -> None:
    """What was put there while the model was pruned is not replaced."""
    raise ArtifactError(f"{folder} is there now, and was not before", hint="-o NEW_FOLDER")
