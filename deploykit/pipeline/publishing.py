"""From a prepared model to a published artifact: convert, validate, profile, gates, publish."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deploykit.artifact.replace import check_replaceable, failed_path
from deploykit.artifact.storage import publish_folder, staging_folder
from deploykit.pipeline import evidence as _evidence
from deploykit.pipeline.plan import Plan
from deploykit.pipeline.progress import Steps
from deploykit.pipeline.staging import calibration_info, draft, finish
from deploykit.pipeline.steps import lower
from deploykit.plugin.artifact import Artifact, load

if TYPE_CHECKING:
    from deploykit_calibration.observe import CalibrationRun
    from deploykit_calibration.prepared import Prepared


def published(
    plan: Plan,
    prepare: Callable[[], Prepared],
    run: CalibrationRun | None,
    *,
    data: Any = None,
    task: _evidence.Task | None = None,
    steps: Steps,
    strict: bool = True,
) -> Artifact:
    """Lower what `prepare` gives, prove it, and publish it where the plan says.

    Args:
        prepare: called once, within the step that converts.
        run: what `calibrate` gave, whose held-out samples are judged; None where there was none.
        data: what parity is judged on without calibration.
        task: the user's metric.
        strict: raise when a gate is missed; False returns the artifact marked `failed`.
    Raises:
        DeploykitError: as `deploykit.export`.
    """
    with staging_folder(plan.output, check_replaceable) as folder:
        with steps.step("convert"):
            prepared = prepare()
            payload = lower(prepared, folder, target=plan.target)
        with steps.step("validate"):
            samples = _evidence.choose_samples(prepared, run, data)
            drafted = draft(
                plan.target,
                prepared,
                payload,
                folder,
                calibration=calibration_info(run, prepared),
                min_placement=plan.gates.min_placement,
            )
            artifact, report = _evidence.prove(
                plan.target, drafted, prepared, samples, plan.gates.tolerance, run=run, task=task
            )
        with steps.step("profile"):
            measured = _evidence.profile(plan, artifact, prepared)
        misses = plan.gates.misses(artifact.achieved, report, measured)
        finish(artifact, report, measured, failed=bool(misses), log=payload.log)
        kept = failed_path(plan.output) if misses and strict else plan.output
        publish_folder(folder, kept, check_replaceable)
    found = load(kept)
    if misses and strict:
        raise misses[0].error(found)
    return found
