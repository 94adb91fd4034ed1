"""`target=[...]`: one model for several targets, from one capture and one calibration.

What any of them refuses before anything is computed is refused before anything is computed for the others. A gate that
one misses, or a converter that fails, takes no other target's artifact with it, and is raised at the end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploykit.contract.errors import DeploykitError, UsageError
from deploykit.pipeline.attempts import attempt
from deploykit.pipeline.capturing import captured_of
from deploykit.pipeline.evidence import begun, task_of
from deploykit.pipeline.fastest import SUFFIX, kept
from deploykit.pipeline.plan import Goals, Plan, default_output, make_plan, make_request, needs_data, refuse_missing
from deploykit.pipeline.progress import Steps
from deploykit.plugin.artifact import Exported

_AUTO = "auto"


def export_several(export: Callable[..., Exported], request: Mapping[str, Any]) -> list[Exported]:
    """Export for each target of a list.

    Args:
        export: `deploykit.export`.
        request: its arguments by name; `target` is a list.
    Returns:
        The artifacts, in the order of the targets.
    Raises:
        UsageError: no target, one twice, or a recipe, which is of one target.
        DeploykitError: as `export`; of several that fail the first, once all have been tried.
    """
    targets = _checked(request)
    plans = {target: _planned(request, target) for target in targets}

    def check(data: Any) -> None:
        for plan in plans.values():
            if plan is not None:
                refuse_missing(plan, data)

    captured, data = captured_of(
        request["model"],
        request["example_inputs"],
        request["calibration"],
        dynamic_batch=request["dynamic_batch"],
        dynamic_shapes=request["dynamic_shapes"],
        check=check,
    )
    data = kept(data)
    task = begun(task_of(request["evaluate"], request["max_drop"]), captured, Steps(enabled=request["progress"]))
    needing = {target: plan is None or needs_data(plan.request) for target, plan in plans.items()}
    run = _calibrated(captured, data, request) if any(needing.values()) and data is not None else None
    shared = {
        **request,
        "evaluate": task,
        "model": captured,
        "example_inputs": None,
        "dynamic_batch": False,
        "dynamic_shapes": None,
    }
    made: list[Exported | DeploykitError] = []
    for target in targets:
        calibration, output = run if needing[target] and run is not None else data, _output(request, target)
        made.append(attempt(export, **{**shared, "target": target, "calibration": calibration, "output": output}))
    return _all_of(targets, made)


def _checked(request: Mapping[str, Any]) -> list[str]:
    targets = list(request["target"])
    if not targets:
        raise UsageError("target is an empty list", hint='target=["x86-cpu", "android"]')
    twice = next((target for target in targets if targets.count(target) > 1), None)
    if twice is not None:
        raise UsageError(f"target {twice!r} is in the list twice", hint="name it once")
    if request["recipe"] is not None:
        raise UsageError("a recipe is of one target, and target= is a list", hint="export them one by one")
    return targets


def _planned(request: Mapping[str, Any], target: str) -> Plan | None:
    """What can be refused before the model is touched; None for `auto` and `fastest`, which make several plans."""
    if request["precision"] == _AUTO or str(target).endswith(SUFFIX):
        return None
    wanted = make_request(
        target,
        request["precision"],
        method=request["calibration_method"],
        include=request["include"],
        exclude=request["exclude"],
        options=request["options"],
        algorithms=request["algorithms"],
    )
    goals = Goals(request["tolerance"], request["min_placement"], request["min_speedup"])
    return make_plan(request["model"], wanted, output=_output(request, target), goals=goals, profile=request["profile"])


def _calibrated(captured: Any, data: Any, request: Mapping[str, Any]) -> Any:
    from deploykit.pipeline.steps import calibrate

    shown = request["progress"]
    return calibrate(
        captured, data, cache_dir=request["cache_dir"], progress=shown if isinstance(shown, bool) else False
    )


def _output(request: Mapping[str, Any], target: str) -> Path:
    """A folder for each: below the one that was named, else where an export for that target alone would be."""
    if request["output"] is None:
        return default_output(request["model"], target, request["precision"])
    return Path(request["output"]) / re.sub(r"[^A-Za-z0-9._-]+", "-", target)


def _all_of(targets: Sequence[str], made: Sequence[Exported | DeploykitError]) -> list[Exported]:
    failed = [(target, each) for target, each in zip(targets, made, strict=True) if isinstance(each, DeploykitError)]
    if not failed:
        return [each for each in made if isinstance(each, Exported)]
    target, error = failed[0]
    others = f"; {', '.join(name for name, _ in failed[1:])} failed, too" if failed[1:] else ""
    error.message = f"{target}: {error.message}{others}"
    error.args = (error.message if error.hint is None else f"{error.message}\n  -> {error.hint}",)
    raise error
