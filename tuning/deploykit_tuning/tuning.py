"""`deploykit.tune`: from a plain export that misses its gate to the best model that passes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from deploykit._version import __version__
from deploykit.artifact.replace import check_replaceable, failed_path
from deploykit.artifact.storage import publish_folder
from deploykit.contract.arguments import names, number
from deploykit.contract.errors import GateError, ParityError, UsageError
from deploykit.contract.progress import Progress
from deploykit.contract.recipe import Recipe
from deploykit.contract.session import Session
from deploykit.judge.parity import Tolerance, tolerance_of
from deploykit.judge.scores import Scores
from deploykit.pipeline.capturing import captured_of
from deploykit.pipeline.evidence import Task
from deploykit.pipeline.export import calibrated, refuse_foreign
from deploykit.pipeline.fastest import kept
from deploykit.pipeline.following import PRECISION, TARGET, aimed, opened
from deploykit.pipeline.plan import Goals, Plan, make_plan, make_request, refuse_missing
from deploykit.pipeline.progress import Steps
from deploykit.pipeline.reference import reference_session
from deploykit.pipeline.staging import with_ladder
from deploykit.pipeline.steps import prepare
from deploykit.pipeline.watch import MOST_SEEN, Watch
from deploykit.plugin.artifact import Artifact, load
from deploykit_calibration.reuse import reusing
from deploykit_tuning.bench import Bench
from deploykit_tuning.climb import Climb, climb, is_out_of_budget
from deploykit_tuning.goal import Goal
from deploykit_tuning.journal import Journal, code_of, key_of
from deploykit_tuning.ladder import TunePlan
from deploykit_tuning.line import Line
from deploykit_tuning.rungs import NAMES, rungs
from deploykit_tuning.training import STEP, Training

_TABLES = "tables"
_MAX_DROP = 0.01


def tune(
    model: Any,
    target: str = TARGET,
    precision: str = PRECISION,
    *,
    calibration: Any = None,
    evaluate: Callable[[Session], Any] | None = None,
    max_drop: float | None = None,
    min_sqnr_db: float | None = None,
    allow: Sequence[str] = NAMES,
    train: Callable[[Any], Any] | None = None,
    budget_s: float | None = None,
    example_inputs: Any = None,
    calibration_method: str = "default",
    dynamic_batch: bool = False,
    dynamic_shapes: Any = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    options: Any = None,
    tolerance: Tolerance | None = None,
    min_placement: float | None = None,
    min_speedup: float | None = None,
    profile: bool = True,
    strict: bool = True,
    output: str | Path | None = None,
    cache_dir: str | Path | None = None,
    progress: Progress = True,
    algorithms: Sequence[str] = (),
    recipe: Recipe | str | Path | None = None,
) -> TunePlan:
    """Find the best model that passes the gates: a plain export first, then dearer steps until they are met.

    A search that was killed goes on where it was when it is called again with the same arguments; nothing is measured
    twice. Its state is in `<output>.tune` until it ends.

    Args:
        model, target, precision, example_inputs, calibration, options, output and others: as `deploykit.export` takes
            them. With `recipe`, the search begins at that instead of the plain export.
        evaluate: task metric, higher is better: one number, or a score for each sample, whose mean is the metric; the
            drop then has a 95 % interval. It must measure on data that calibration did not see.
        max_drop: how much lower the metric may be, in its own unit; 0.01 where nothing is said. Needs `evaluate`.
        min_sqnr_db: SQNR in dB that must be reached, in place of the precision's default gate.
        allow: what may be tried: `ptq` (choices of ranges), `rounding`, `mixed` (layers in float), `train`.
        train: your own training: takes the model with its roundings in place, and trains its parameters in place.
        budget_s: seconds after which no further step begins.
        strict: raise when no candidate passes; False returns the nearest one, marked `failed`.
    Returns:
        The recipe, every step that was tried, and the best artifact, measured as such and published at `output`.
    Raises:
        ParityError, PlacementError, PerformanceError: nothing passes; `.ladder` has all that was tried, `.candidate` is
            the nearest artifact, kept at `<output>.failed`.
        UsageError: an argument is wrong, or `evaluate` measures on the calibration data.
        ArtifactError: another search is writing to the same output, or what lies there is nobody's search.
        Others: as `deploykit.export`.
    """
    recipe = opened(recipe)
    target, precision = aimed(recipe, target, precision)
    allow = names("allow", allow, NAMES[0])
    min_sqnr_db = number("min_sqnr_db", min_sqnr_db, "pass a number, such as min_sqnr_db=30")
    budget_s = number("budget_s", budget_s, "pass a number of seconds, such as budget_s=300", least=0.0)
    _check(precision, allow, train, evaluate, max_drop)
    request = make_request(
        target,
        precision,
        method=calibration_method,
        include=include,
        exclude=exclude,
        options=options,
        algorithms=algorithms,
        recipe=recipe,
    )
    goals = Goals(_gate(precision, tolerance, min_sqnr_db), min_placement, min_speedup)
    plan = make_plan(model, request, output=output, goals=goals, profile=profile)
    task = None if evaluate is None else Task(evaluate, _MAX_DROP if max_drop is None else max_drop)
    calibration = kept(calibration)
    shapes = {"dynamic_batch": dynamic_batch, "dynamic_shapes": dynamic_shapes}
    training = Training(
        model,
        train,
        {
            **{"target": target, "precision": precision, "example_inputs": example_inputs, "calibration": calibration},
            **{"calibration_method": calibration_method, "include": include, "exclude": exclude, "options": options},
            **{"dynamic_batch": dynamic_shapes is None, "dynamic_shapes": dynamic_shapes, "progress": False},
        },
        {
            **{"tolerance": plan.gates.tolerance, "min_placement": min_placement, "min_speedup": min_speedup},
            **{"profile": profile, "progress": False, **shapes},
        },
    )
    journal = Journal(plan.output.with_name(f"{plan.output.name}.tune"))
    steps = Steps(enabled=progress)
    try:
        with steps.step("capture"):
            captured, data = captured_of(
                model,
                example_inputs,
                calibration,
                **shapes,
                check=partial(refuse_missing, plan),
            )
        refuse_foreign(plan, captured)
        tables = cache_dir or journal.folder / _TABLES
        with steps.step("calibrate", spinner=False):
            run = calibrated(plan, captured, data, tables, progress=steps.counted, always=data is not None)
        bench = Bench(plan, captured, run, data, Goal(plan.gates.tolerance, task), Watch(run))
        journal.begin(_key(bench, task))
        _measure_reference(bench, journal)
        with reusing(), Line(enabled=progress, wanted=_wanted(bench.goal)) as line:
            search = Climb(bench, journal, line, budget_s)
            climb(search, rungs(allow, partial(_base, bench), training))
            found = search.finished()
    except BaseException as error:
        if journal.is_empty:
            journal.remove()
        else:
            error.add_note(f"what was measured is kept in {journal.folder}: the same call goes on from there")
        journal.close()
        raise
    with closing(journal):
        return _ended(search, found[1], training, met=found[2].met, strict=strict)


def _check(
    precision: str,
    allow: Sequence[str],
    train: Any,
    evaluate: Any,
    max_drop: float | None,
) -> None:
    if precision == "auto":
        hint = 'deploykit.export(precision="auto", evaluate=..., max_drop=...) chooses between precisions'
        raise UsageError("tune searches within one precision", hint=hint)
    unknown = [name for name in allow if name not in NAMES]
    if unknown:
        raise UsageError(f"allow has {unknown[0]!r}", hint=f"of {', '.join(NAMES)}")
    if train is not None and not callable(train):
        raise UsageError(f"train is {train!r}", hint="pass a function that trains the model that it is given")
    if max_drop is not None and evaluate is None:
        hint = "pass evaluate=, or say min_sqnr_db= for how far outputs may differ"
        raise UsageError("max_drop needs evaluate=, the metric that may fall", hint=hint)


def _gate(precision: str, tolerance: Tolerance | None, min_sqnr_db: float | None) -> Tolerance | None:
    """The parity gate; that of the precision where the user says nothing."""
    from deploykit.contract.precision import known

    found = known(precision)
    if min_sqnr_db is None or found is None or not isinstance(tolerance, Tolerance | None):  # the plan refuses these
        return tolerance
    return replace(tolerance_of(found) if tolerance is None else tolerance, min_sqnr_db=min_sqnr_db)


def _wanted(goal: Goal) -> str:
    parts = [] if goal.tolerance.min_sqnr_db is None else [f"{goal.tolerance.min_sqnr_db:g} dB"]
    return ", ".join(parts if goal.task is None else [*parts, f"a drop of {goal.task.max_drop:g} at most"])


def _key(bench: Bench, task: Task | None) -> str:
    """What a state is of: model, data, request and goal."""
    asked, run = bench.plan.request, bench.run
    request = {
        "target": f"{asked.device.name}:{asked.toolchain}",
        "precision": asked.precision.value,
        "method": asked.method,
        "patterns": (asked.include, asked.exclude),
        "options": msgspec.to_builtins(asked.options),
        "algorithms": asked.algorithms,
        "recipe": "" if asked.recipe is None else asked.recipe.fingerprint,
    }
    metric = None if task is None else (code_of(task.evaluate), task.max_drop)
    data = "" if run is None else (run.table.data_fingerprint, run.table.samples)
    goals = (bench.plan.gates.tolerance, bench.plan.gates.min_placement, bench.plan.gates.min_speedup)
    return key_of(__version__, bench.captured.fingerprint, data, request, goals, metric, bench.plan.profile)


def _measure_reference(bench: Bench, journal: Journal) -> None:
    """The metric of the float model, once; refused where it is measured on what calibration saw."""
    task = bench.goal.task
    if task is None:
        return
    if journal.reference is None:
        found = task.reference(bench.watch.over(reference_session(bench.captured)))
        if bench.watch.seen >= MOST_SEEN:
            hint = "calibrate on one part of the data, and evaluate on another"
            hint += f": about {bench.watch.seen:.0%} of what evaluate= ran is calibration data"
            raise UsageError(next(bench.watch.remarks), hint=hint)
        journal.keep_reference(found.value, None if found.each is None else found.each.tolist())
    value, each = journal.reference or (0.0, None)
    known = Scores(value, None if each is None else _array(each))
    bench.goal = replace(bench.goal, task=replace(task, known=known))


def _array(values: list[float]) -> Any:
    import numpy as np

    return np.asarray(values, dtype=np.float64)


def _base(bench: Bench) -> Recipe:
    """What a plain export decides."""
    from deploykit_calibration.recipes import recipe_of

    made = prepare(bench.plan.request, bench.captured, bench.run, target=bench.plan.target)
    return replace(recipe_of(made), ladder=())


def _ended(search: Climb, artifact: Artifact, training: Training, *, met: bool, strict: bool) -> TunePlan:
    """Publish the best artifact with the ladder in its recipe."""
    plan = search.bench.plan
    ladder = tuple(search.ladder)
    written = with_ladder(artifact, [step.recorded for step in ladder])
    folder = plan.output if met or not strict else failed_path(plan.output)
    publish_folder(written.path, folder, check_replaceable)
    published = load(folder)
    search.journal.remove()
    if not met and strict:
        raise _missed(plan, published, ladder, useless=() if training.train else (STEP,))
    assert published.recipe is not None and published.parity is not None
    notes = (*published.parity.notes, *training.notes)
    return TunePlan(published.recipe, ladder, published, met, notes, training.model if training.is_kept else None)


def _missed(plan: Plan, artifact: Artifact, ladder: Sequence[Any], useless: Sequence[str]) -> GateError:
    """The error of the gate that is missed; steps that are `useless`, for want of an argument, are no advice."""
    assert artifact.parity is not None
    is_mixed = artifact.recipe is not None and any(layer.chosen for layer in artifact.recipe.layers)
    untried = tuple(dict.fromkeys(step.step for step in ladder if is_out_of_budget(step) and step.step not in useless))
    gates = replace(plan.gates, searched=True, mixed=is_mixed, untried=untried)
    misses = gates.misses(artifact.achieved, artifact.parity, artifact.profile)
    message = f"{plan.request.precision} artifact misses a gate"
    error = misses[0].error(artifact) if misses else ParityError(message, report=artifact.parity, candidate=artifact)
    error.ladder = ladder
    return error
