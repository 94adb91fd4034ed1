"""`precision="auto"`: the fastest precision of a target that passes its gates, the task metric among them.

Each precision is exported, and what passes is measured in turns where the artifacts compute here as on their device;
elsewhere latencies are estimates from the device table, or, where that has no rates, what the arithmetic costs by the
bytes of its types, and the choice says so. They are never mixed. An int8 that
misses its gates is tuned (ranges, rounding, layers in float) before it is given up.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from deploykit.artifact.choice import Candidate, Choice
from deploykit.artifact.manifest import CHOICE_NAME
from deploykit.artifact.replace import check_replaceable, replaceable
from deploykit.artifact.storage import publish_folder, staging_folder, write_file
from deploykit.contract.errors import (
    DeploykitError,
    GateError,
    MissingDependencyError,
    ParityError,
    UnsupportedPrecisionError,
    UsageError,
)
from deploykit.contract.precision import Evidence, Precision
from deploykit.pipeline.attempts import attempt, raise_common
from deploykit.pipeline.capturing import captured_of
from deploykit.pipeline.evidence import begun, task_of
from deploykit.pipeline.fastest import SUFFIX, described, is_native, kept, measured, passes
from deploykit.pipeline.plan import default_output
from deploykit.pipeline.progress import Steps
from deploykit.pipeline.unused import refuse_unused, used_of_each
from deploykit.plugin.artifact import Artifact, load
from deploykit.plugin.estimate import estimate, relative_cost
from deploykit.plugin.registry import Resolved, resolve
from deploykit_tuning.tuning import tune

PRECISIONS = ("mixed", "int8", "int8-dynamic", "fp16", "bf16", "fp32")
"""What is tried, where the target has it."""
TUNED = "int8, tuned"

Made = Artifact | DeploykitError
Export = Callable[..., Artifact]


def export_auto(export: Export, request: Mapping[str, Any]) -> Artifact:
    """Export in each precision, and publish the fastest artifact that passes its gates.

    Args:
        export: `deploykit.export`.
        request: its arguments by name.
    Raises:
        UsageError: a recipe, or `device:fastest`, which choose otherwise.
        UnsupportedPrecisionError: the target has none of `PRECISIONS` here.
        ParityError: nothing passes; the message has the reason of each.
    """
    _check(request)
    resolved = resolve(request["target"])
    names = _offered(resolved)
    used = _used(resolved, names, request)
    chosen = request["output"]
    output = replaceable(default_output(request["model"], request["target"], "auto") if chosen is None else chosen)
    with (
        staging_folder(output, check_replaceable) as staging,
        tempfile.TemporaryDirectory(prefix="deploykit-auto-") as cache,
    ):
        shared = _shared({**request, "cache_dir": request["cache_dir"] or cache})
        task = begun(
            task_of(shared["evaluate"], shared["max_drop"]), shared["model"], Steps(enabled=shared["progress"])
        )
        measured_once = {**shared, "evaluate": task}
        made = {name: _made(export, {**measured_once, **used[name]}, name, staging) for name in names}
        if isinstance(made.get("int8"), GateError | Artifact) and not _passing(made["int8"]):
            made[TUNED] = _tuned(shared, staging)
        passing = {name: found for name, found in made.items() if isinstance(found, Artifact) and _ready(found)}
        if not passing:
            _raise_missing(made)
            raise_common(made.values())
            reasons = "; ".join(f"{name}: {described(name, found).reason}" for name, found in made.items())
            hint = "export in one of them to see its report, or allow a larger max_drop"
            raise ParityError(f"no precision of {request['target']} passes: {reasons}", hint=hint)
        choice = _chosen(passing, made, resolved)
        winner = passing[choice.winner]
        write_file(winner.path / CHOICE_NAME, msgspec.json.format(msgspec.json.encode(choice), indent=2) + b"\n")
        publish_folder(winner.path, output, check_replaceable)
    return load(output)


def _raise_missing(made: Mapping[str, Made]) -> None:
    """Nothing is wrong with the model where the packages are what all lack."""
    missing = [found for found in made.values() if isinstance(found, MissingDependencyError)]
    if len(missing) == len(made):
        raise missing[0]


def _check(request: Mapping[str, Any]) -> None:
    if str(request["target"]).endswith(SUFFIX):
        raise UsageError("precision='auto' and device:fastest both choose", hint="name the toolchain, or the precision")
    if request["recipe"] is not None:
        raise UsageError("a recipe is of one precision", hint="leave precision= to it")


def _offered(resolved: Resolved) -> list[str]:
    have = resolved.target.precisions_here(resolved.device)
    found = [name for name in PRECISIONS if Precision(name) in have]
    if not found:
        raise UnsupportedPrecisionError(
            f"{resolved.typed} has none of {', '.join(PRECISIONS)} here; it has {', '.join(have) or 'none'}",
            hint="name one of them",
        )
    return found


def _used(resolved: Resolved, names: Sequence[str], request: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The arguments as each precision uses them; what none of them uses is refused."""
    wanted = [(resolved.target, Precision(name)) for name in names]
    used = used_of_each(wanted, request)
    refuse_unused(*wanted[0], used[0])
    return dict(zip(names, used, strict=True))


def _shared(request: Mapping[str, Any]) -> dict[str, Any]:
    """The request with its model captured once, and its data read once."""
    data = kept(request["calibration"])
    shapes = {name: request[name] for name in ("dynamic_batch", "dynamic_shapes")}
    captured, data = captured_of(request["model"], request["example_inputs"], data, **shapes)
    plain = {**request, "model": captured, "example_inputs": None, "dynamic_batch": False, "dynamic_shapes": None}
    return {**plain, "calibration": data, "strict": False}


def _made(export: Export, shared: Mapping[str, Any], name: str, staging: Path) -> Made:
    """One precision; static ones share one calibration."""
    if Precision(name).is_static and shared["calibration"] is None:
        return UsageError(f"{name} needs calibration data, and there is none", hint="pass calibration=")
    return attempt(export, **{**shared, "precision": name, "output": staging / name})


def _tuned(shared: Mapping[str, Any], staging: Path) -> Made:
    taken = inspect.signature(tune).parameters
    given = {name: value for name, value in shared.items() if name in taken}
    given["max_drop"] = shared["max_drop"] if shared["evaluate"] is not None else None
    given |= {"precision": "int8", "output": staging / "int8-tuned", "allow": ("ptq", "rounding", "mixed")}
    found = attempt(tune, **given)
    return found if isinstance(found, DeploykitError) else found.best


def _passing(found: Made) -> bool:
    return isinstance(found, Artifact) and _ready(found)


def _ready(found: Artifact) -> bool:
    """Whether it met its gates; what is to be built on the device is compared by estimate."""
    return passes(found) or (found.manifest.build is not None and found.status != "failed")


def _chosen(passing: Mapping[str, Artifact], made: Mapping[str, Made], resolved: Resolved) -> Choice:
    native = {name: found for name, found in passing.items() if passes(found) and is_native(found)}
    if native:
        return measured(native, made)
    rows = [_estimated(name, found, passing, resolved) for name, found in made.items()]
    rows.sort(key=_estimate_of)
    return Choice(rows[0].target, 0, tuple(rows), Evidence.ESTIMATE)


def _estimated(name: str, found: Made, passing: Mapping[str, Artifact], resolved: Resolved) -> Candidate:
    """With a latency by the device's rates; a device that has none in its table leaves what the arithmetic costs."""
    row = described(name, found)
    if name not in passing:
        return row
    if not resolved.device.peak_tops:
        return replace(row, relative_cost=relative_cost(passing[name].achieved), reason="")
    return replace(row, latency_ms=estimate(passing[name], resolved.device).latency_ms, reason="")


def _estimate_of(row: Candidate) -> float:
    if row.latency_ms is not None:
        return row.latency_ms.p50
    return float("inf") if row.relative_cost is None else row.relative_cost
