"""The ladder: what is tried, what is kept, what is told on a miss, and what is never measured twice."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import deploykit
from deploykit.contract.errors import CalibrationError, DeploykitError, UnknownTargetError, UsageError
from deploykit.testing.models import ZOO
from deploykit_calibration.algorithms import SAMPLES, Algorithm
from deploykit_tuning import rungs
from deploykit_tuning.journal import code_of

PLAIN = {"profile": False, "progress": False}


def tune(case: Any, output: Path, **arguments: Any) -> Any:
    return deploykit.tune(case.captured, "x86-cpu", "int8", calibration=case.run, output=output, **PLAIN, **arguments)


def finer(prepared: Any, samples: Any) -> Any:
    """An algorithm that quantises nothing but the first layer: better, as rounding would be."""
    names = [layer.name for layer in prepared.layers if layer.macs][1:]
    return replace(prepared, kept=dict.fromkeys(names, "for the test"))


def worse(prepared: Any, samples: Any) -> Any:
    return replace(prepared, method="percentile:70")


def broken(prepared: Any, samples: Any) -> Any:
    raise RuntimeError("no such luck")


CHOICES = [Algorithm(f.__name__, f, cost="none", is_choice=True) for f in (broken, finer, worse)]


def told(ladder: Any) -> list[tuple[str, str]]:
    return [(step.step, step.outcome) for step in ladder]


def test_a_goal_that_the_plain_export_meets_needs_no_other_step(case: Any, tmp_path: Path) -> None:
    plan = tune(case, tmp_path / "a", min_sqnr_db=20.0, evaluate=case.right, max_drop=0.2)
    assert plan.met and told(plan.ladder) == [("ptq", "kept"), ("ptq: artifact", "kept")]
    first, proved = plan.ladder
    assert first.on == "simulation" and proved.on == "artifact" and first.seconds > 0.0
    assert first.int8_share == 1.0 and abs(first.sqnr_db - proved.sqnr_db) < 3.0
    assert proved.metric is not None and proved.drop_low <= proved.drop <= proved.drop_high
    assert plan.best.path == tmp_path / "a" and plan.best.status == "verified"
    assert plan.recipe == plan.best.recipe and [step.step for step in plan.recipe.ladder] == ["ptq", "ptq: artifact"]
    assert plan.best.manifest.fingerprints["recipe"] == plan.recipe.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_its_recipe_makes_the_same_bytes(case: Any, tmp_path: Path, only: Any) -> None:
    only(CHOICES[1])
    arguments: dict[str, Any] = {"evaluate": case.right, "max_drop": 0.2, "min_placement": 0.0}
    gate = deploykit.Tolerance(min_sqnr_db=48.0)
    plan = tune(case, tmp_path / "a", tolerance=gate, allow=("ptq",), **arguments)
    assert plan.met and "ranges: finer: artifact" in [step.step for step in plan.ladder]
    plan.recipe.write(tmp_path / "net.toml")
    for name, recipe in (("b", plan.recipe), ("c", tmp_path / "net.toml")):
        made = deploykit.export(
            case.captured, target="x86-cpu", recipe=recipe, calibration=case.run, tolerance=gate,
            output=tmp_path / name, **arguments, **PLAIN,
        )  # fmt: skip
        for path in plan.best.path.iterdir():
            assert path.read_bytes() == (made.path / path.name).read_bytes(), path.name


def test_what_falls_to_float_between_kept_layers_is_in_the_recipe_and_no_edit(tmp_path: Path, only: Any) -> None:
    """A pooling between two layers that are kept in float is float, and was not chosen."""
    only()
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(16, 4)
    ).eval()
    rows = torch.randn(8, 3, 8, 8)
    shared: dict[str, Any] = {
        "calibration": rows.split(1),
        "example_inputs": (rows[:1],),
        "min_placement": 0.0,
        **PLAIN,
    }
    plan = deploykit.tune(model, "x86-cpu", min_sqnr_db=100.0, allow=("mixed",), output=tmp_path / "a", **shared)
    pool = next(layer for layer in plan.recipe.layers if "pool" in layer.kind)
    assert (pool.precision, pool.chosen) == ("float", False) and len(plan.recipe.kept) == 2
    tolerance = plan.best.parity.tolerance
    again = deploykit.export(model, recipe=plan.recipe, tolerance=tolerance, output=tmp_path / "b", **shared)
    assert (plan.best.path / "manifest.json").read_bytes() == (again.path / "manifest.json").read_bytes()
    assert "it was edited" not in (again.path / "manifest.json").read_text()


def test_a_miss_keeps_the_best_and_tells_all(case: Any, tmp_path: Path, only: Any) -> None:
    only(*CHOICES)
    with pytest.raises(deploykit.ParityError, match="180 dB") as caught:
        tune(case, tmp_path / "a", min_sqnr_db=180.0, min_placement=0.0, allow=("ptq", "rounding"))
    steps = told(caught.value.ladder)
    assert steps[:4] == [
        ("ptq", "kept"),
        ("ranges: broken", "failed"),
        ("ranges: finer", "kept"),
        ("ranges: worse", "passed over"),
    ]
    assert ("rounding", "skipped") in steps and steps[-1] == ("ranges: finer: artifact", "failed")
    assert "no such luck" in caught.value.ladder[1].reason
    figures = {step.step: step.sqnr_db for step in caught.value.ladder}
    assert figures["ranges: finer"] > figures["ptq"] > figures["ranges: worse"]
    kept = caught.value.candidate
    assert kept.path == tmp_path / "a.failed" and kept.status == "failed"
    assert [step.step for step in kept.recipe.ladder] == [name for name, _ in steps]
    assert [path.name for path in tmp_path.iterdir()] == ["a.failed"]
    plan = tune(case, tmp_path / "b", min_sqnr_db=180.0, min_placement=0.0, allow=(), strict=False)
    assert not plan.met and plan.best.path == tmp_path / "b" and plan.best.status == "failed"


def test_rounding_algorithms_are_found_by_what_they_say(case: Any, tmp_path: Path, only: Any) -> None:
    doubts = Algorithm("doubts", lambda p, s: replace(p, corrects_bias=False), cost="none", needs=frozenset({SAMPLES}))
    only(doubts)
    plan = tune(case, tmp_path / "a", min_sqnr_db=180.0, allow=("rounding",), strict=False)
    assert "rounding: doubts" in [step.step for step in plan.ladder]
    table = replace(case, run=case.run.table)
    plan = tune(table, tmp_path / "b", min_sqnr_db=180.0, allow=("rounding",), strict=False)
    skipped = next(step for step in plan.ladder if step.step == "rounding: doubts")
    assert skipped.outcome == "skipped" and "needs samples" in skipped.reason


def test_layers_are_scored_on_samples_that_no_algorithm_saw(
    case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import deploykit_calibration.sensitivity as scoring

    scored: list[Any] = []
    honest = scoring.sensitivity

    def recorded(prepared: Any, samples: Any = (), **arguments: Any) -> Any:
        scored.extend(samples)
        return honest(prepared, samples, **arguments)

    monkeypatch.setattr(scoring, "sensitivity", recorded)
    tune(case, tmp_path / "a", min_sqnr_db=180.0, allow=("mixed",), strict=False)
    deploykit.sensitivity(case.captured, "x86-cpu", case.run, progress=False)
    seen = {feeds["input"].numpy().tobytes() for feeds in case.run.samples}
    assert len(scored) == 2 * len(case.run.held_out) > 0
    assert not seen & {feeds["input"].numpy().tobytes() for feeds in scored}


def test_what_an_algorithm_finds_is_in_the_recipe(case: Any, tmp_path: Path, only: Any) -> None:
    """One that finds nothing is not measured; what one found is followed, and not found again."""
    found: list[Any] = []

    def finds(prepared: Any, samples: Any) -> Any:
        found.append(dict(prepared.decided))
        return replace(finer(prepared, samples), decided={"number": 7})

    idle = Algorithm("idle", lambda prepared, samples: prepared, cost="none")
    only(Algorithm("finds", finds, cost="none", decides=frozenset({"number"})), idle)
    plan = tune(
        case, tmp_path / "a", min_sqnr_db=180.0, min_placement=0.0, allow=("rounding",), strict=False,
    )  # fmt: skip
    assert {step.name: step.decided for step in plan.recipe.algorithms}["finds"] == {"number": 7}
    passed = next(step for step in plan.ladder if step.step == "rounding: idle")
    assert (passed.outcome, passed.reason, passed.sqnr_db) == ("passed over", "it found nothing to change", None)
    assert found == [{}]
    deploykit.export(
        case.captured, "x86-cpu", recipe=plan.recipe, calibration=case.run, min_placement=0.0, strict=False,
        output=tmp_path / "b", **PLAIN,
    )  # fmt: skip
    assert found == [{}, {"number": 7}]


def test_a_cosine_is_searched_for_like_an_sqnr(case: Any, tmp_path: Path) -> None:
    """Its SQNR is enough: the cosine's own margin in dB says how many layers to keep, and that it is missed."""
    noise = 10 ** (-55 / 10)
    gate = deploykit.Tolerance(min_sqnr_db=1.0, min_cosine=(1.0 + noise) ** -0.5)
    plan = tune(case, tmp_path / "a", tolerance=gate, min_placement=0.0, allow=("mixed",))
    assert "cosine" in plan.ladder[0].reason and "SQNR" not in plan.ladder[0].reason
    tried = [step for step in plan.ladder if step.step.startswith("mixed: ") and step.on == "simulation"]
    assert 1 <= len(tried) <= 4 and plan.met and 0.0 < tried[-1].int8_share < 1.0


def _falling(monkeypatch: pytest.MonkeyPatch, fall_db: float) -> list[Any]:
    """Artifacts fall this far short of their simulations; gives the recipes that were made, in their order."""
    from deploykit_tuning.bench import Bench

    honest, made = Bench.proved, []

    def proved(self: Any, artifact: Any) -> Any:
        made.append(artifact.recipe)
        found = honest(self, artifact)
        margin = found.margin_db - fall_db
        failures = () if margin >= 0.0 else ("the runtime",)
        return replace(found, met=not failures, failures=failures, margin_db=margin, sqnr_db=found.sqnr_db - fall_db)

    monkeypatch.setattr(Bench, "proved", proved)
    return made


def test_the_search_goes_on_behind_an_artifact_that_falls_short(
    case: Any, tmp_path: Path, only: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The goal is raised by what the artifact fell short, and the next artifact meets it."""
    only()
    plain = tune(case, tmp_path / "plain", allow=(), min_sqnr_db=1.0).ladder[0].sqnr_db
    made = _falling(monkeypatch, fall_db=10.0)
    plan = tune(case, tmp_path / "a", min_sqnr_db=plain + 1.0, min_placement=0.0, allow=("mixed",))
    proofs = [step for step in plan.ladder if step.step.endswith(": artifact")]
    assert plan.met and proofs[0].outcome == "failed" and proofs[-1].outcome == "kept"
    assert proofs[-1].int8_share < proofs[0].int8_share
    measured = [step.step for step in plan.ladder if step.on == "simulation" and step.outcome != "skipped"]
    after = measured.index(proofs[0].step.removesuffix(": artifact")) + 1
    assert measured[after:], "something was looked for behind it"
    assert made[-1].kept == plan.recipe.kept and plan.best.status == "verified"


def test_a_search_without_hope_ends_and_says_what_was_expected(
    case: Any, tmp_path: Path, only: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No mix is 80 dB better than asked for: few artifacts are made, and the start is what is left."""
    only()
    made = _falling(monkeypatch, fall_db=80.0)
    plan = tune(
        case, tmp_path / "a", min_sqnr_db=45.0, min_placement=0.5, allow=("mixed",), strict=False,
    )  # fmt: skip
    assert not plan.met and len(made) <= 4
    assert any("its artifact is expected to miss: the last one fell 80 dB short" in step.reason for step in plan.ladder)
    figures = [step.sqnr_db for step in plan.ladder if step.step.endswith(": artifact")]
    assert plan.best.parity.sqnr_db - 80.0 == pytest.approx(max(figures))


@pytest.mark.parametrize(("allow", "advice"), [((), "exclude="), (("mixed",), "lower the goal")])
def test_what_a_search_kept_in_float_is_no_advice(case: Any, tmp_path: Path, allow: Any, advice: str) -> None:
    with pytest.raises(deploykit.ParityError) as caught:
        tune(case, tmp_path / "a", min_sqnr_db=180.0, allow=allow)
    assert advice in caught.value.hint and ("exclude=" in caught.value.hint) == (allow == ())
    assert "deploykit.tune" not in caught.value.hint


def test_a_budget_ends_the_search_behind_an_artifact(
    case: Any, tmp_path: Path, only: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploykit_tuning.climb import Climb

    only()
    plain = tune(case, tmp_path / "plain", allow=(), min_sqnr_db=1.0).ladder[0].sqnr_db
    made = _falling(monkeypatch, fall_db=10.0)
    monkeypatch.setattr(Climb, "is_spent", property(lambda self: bool(made)))
    plan = tune(
        case, tmp_path / "a", min_sqnr_db=plain + 1.0, min_placement=0.0, allow=("mixed",), strict=False, budget_s=1e9,
    )  # fmt: skip
    assert not plan.met and len(made) <= 2  # what was made, and the start to compare it with
    steps = [step.step for step in plan.ladder if step.outcome != "skipped"]
    assert sum(step.startswith("mixed: ") and not step.endswith("artifact") for step in steps) <= 4


def test_a_simulation_is_judged_as_its_artifact_is_by_what_calibration_saw_too(case: Any, tmp_path: Path) -> None:
    """A sample far out of the ranges among those that calibration saw: held-out ones meet the gate, and it does not."""
    far = [{name: 50.0 * tensor for name, tensor in feeds.items()} for feeds in case.run.samples[:1]]
    run = replace(case.run, samples=[*far, *case.run.samples[1:]])
    arguments: dict[str, Any] = {"min_sqnr_db": 30.0, "allow": ("ptq",), "strict": False, **PLAIN}
    plan = deploykit.tune(case.captured, calibration=run, output=tmp_path / "a", **arguments)
    first, proved = plan.ladder[0], plan.ladder[-1]
    assert first.sqnr_db > 30.0 and "on samples that calibration saw" in first.reason
    assert proved.outcome == "failed" and "that its ranges were taken from" in proved.reason
    assert [step.on for step in plan.ladder if step.on == "artifact"] == ["artifact"], (
        "one that cannot pass is not made"
    )


def test_goals_may_be_of_numpy_and_lists_may_be_read_once(case: Any, tmp_path: Path) -> None:
    goals: dict[str, Any] = {
        "min_sqnr_db": np.float64(180.0),
        "budget_s": np.float32(1e6),
        "min_placement": np.float32(0),
    }
    task = {"evaluate": case.right, "max_drop": np.float32(0.5)}
    allow = (name for name in ("mixed",))
    plan = tune(case, tmp_path / "a", allow=allow, strict=False, **goals, **task)
    assert any(step.step.startswith("mixed: ") for step in plan.ladder)
    for wrong in ({"allow": None}, {"allow": 5}, {"budget_s": "5"}, {"max_drop": True, "evaluate": case.right}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            tune(case, tmp_path / "b", **wrong)
    assert not (tmp_path / "b.tune").exists()


@pytest.mark.parametrize("wrong", [{"include": ["zzz"]}, {"exclude": ["zzz"]}, {"exclude": ["["]}])
def test_a_start_that_cannot_be_made_is_the_error_of_an_export(case: Any, tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(DeploykitError) as of_export:
        deploykit.export(case.captured, calibration=case.run, output=tmp_path / "a", **wrong, **PLAIN)
    with pytest.raises(type(of_export.value)) as caught:
        tune(case, tmp_path / "b", min_sqnr_db=90.0, **wrong)
    assert str(caught.value) == str(of_export.value)
    assert not (tmp_path / "b.tune").exists()


@pytest.mark.parametrize("call", [deploykit.tune, deploykit.sensitivity])
def test_a_search_is_of_one_toolchain(call: Any, case: Any) -> None:
    with pytest.raises(UnknownTargetError, match="finds by measuring") as caught:
        call(case.captured, "x86-cpu:fastest", calibration=case.run, progress=False)
    assert "x86-cpu:onnxruntime" in (caught.value.hint or "")


def test_an_iterator_that_raises_says_at_which_batch(case: Any, tmp_path: Path) -> None:
    def broken() -> Any:
        yield case.captured.example_inputs[0]
        raise OSError("the disk is gone")

    for call in (deploykit.tune, functools.partial(deploykit.export, target="x86-cpu:fastest"), deploykit.export):
        with pytest.raises(CalibrationError, match="failed at batch 1: OSError: the disk is gone"):
            call(case.captured, calibration=broken(), output=tmp_path / "a", **PLAIN)


def test_the_budget_ends_the_climb(case: Any, tmp_path: Path) -> None:
    plan = tune(case, tmp_path / "a", min_sqnr_db=180.0, budget_s=0.0, strict=False)
    measured = [step.step for step in plan.ladder if step.outcome != "skipped"]
    assert measured == ["ptq", "ptq: artifact"]
    assert all("budget of 0 s is spent" in step.reason for step in plan.ladder if step.outcome == "skipped")
    assert {"ranges", "rounding", "mixed"} <= {step.step for step in plan.ladder}


def test_a_miss_of_a_spent_budget_says_so_and_what_was_not_tried(case: Any, tmp_path: Path) -> None:
    with pytest.raises(deploykit.ParityError) as caught:
        tune(case, tmp_path / "a", min_sqnr_db=180.0, budget_s=0.0, allow=("ptq", "mixed"))
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("raise budget_s=, which ended the search before ranges, mixed; or ")


def test_a_plan_is_shown_as_its_ladder(case: Any, tmp_path: Path) -> None:
    lines = str(tune(case, tmp_path / "a", allow=())).splitlines()
    assert lines[0] == f"{tmp_path / 'a'}: every gate is met" and lines[1].split()[:2] == ["step", "outcome"]
    assert [line.split("  ")[0] for line in lines[2:]] == ["ptq", "ptq: artifact"]


def test_a_metric_that_is_no_figure_is_told_as_that(case: Any, tmp_path: Path) -> None:
    left = [1.0]
    with pytest.raises(deploykit.ParityError, match=r"no finite figure, where it gave 1 for the float model") as caught:
        tune(case, tmp_path / "a", evaluate=lambda session: left.pop() if left else float("nan"), allow=())
    assert "e+308" not in str(caught.value)


def test_a_metric_that_returns_several_figures_is_refused_before_the_search(case: Any, tmp_path: Path) -> None:
    for found in ((0.9, 0.3), {"accuracy": 0.9}, np.array([0.3, 0.9]), float("nan"), None):

        def evaluate(session: Any, found: Any = found) -> Any:
            case.right(session)
            return found

        with pytest.raises(deploykit.UsageError, match="evaluate= returned "):
            tune(case, tmp_path / "a", evaluate=evaluate)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_search_says_that_the_same_call_goes_on(case: Any, tmp_path: Path) -> None:
    calls = []

    def stopped(session: Any) -> float:
        calls.append(session)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt) as caught:
        tune(case, tmp_path / "a", evaluate=stopped)
    assert "the same call goes on from there" in caught.value.__notes__[0]
    assert [path.name for path in tmp_path.iterdir()] == ["a.tune"]


def test_an_empty_output_is_not_the_default_one(case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(deploykit.ArtifactError, match="names no folder"):
        tune(case, "")  # type: ignore[arg-type]
    for target, precision in (("x86-cpu", "int8"), ("x86-cpu", "auto"), ("x86-cpu:fastest", "int8")):
        with pytest.raises(deploykit.ArtifactError, match="names no folder"):
            deploykit.export(case.captured, target, precision, calibration=case.run, output="", **PLAIN)
    assert not list(tmp_path.iterdir())


def test_what_is_no_better_as_an_artifact_is_not_returned(
    case: Any, tmp_path: Path, only: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploykit_tuning.bench import Bench

    only(CHOICES[1])
    honest = Bench.proved

    def proved(self: Any, artifact: Any) -> Any:
        found = honest(self, artifact)
        return replace(found, sqnr_db=1.0) if artifact.recipe.kept else found

    monkeypatch.setattr(Bench, "proved", proved)
    plan = tune(case, tmp_path / "a", min_sqnr_db=180.0, min_placement=0.0, allow=("ptq",), strict=False)
    assert [step.step for step in plan.ladder][-2:] == ["ranges: finer: artifact", "ptq: artifact"]
    assert not plan.recipe.kept


def test_a_simulation_that_promises_too_much_is_climbed_past(
    case: Any, tmp_path: Path, only: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploykit_tuning.bench import Bench

    only(CHOICES[1])
    honest = Bench.proved

    def proved(self: Any, artifact: Any) -> Any:
        found = honest(self, artifact)
        return found if artifact.recipe.kept else replace(found, met=False, failures=("the runtime",), margin_db=-1.0)

    monkeypatch.setattr(Bench, "proved", proved)
    plan = tune(case, tmp_path / "a", min_sqnr_db=20.0, min_placement=0.0, allow=("ptq",))
    outcomes = told(plan.ladder)
    assert outcomes == [
        ("ptq", "kept"),
        ("ptq: artifact", "failed"),
        ("ranges: finer", "kept"),
        ("ranges: finer: artifact", "kept"),
    ]
    assert plan.met and plan.recipe.kept


def test_a_dearer_candidate_stands_in_where_the_artifact_falls_short(
    case: Any, tmp_path: Path, only: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cheapest that met the goal in simulation misses it by a hair in the runtime: what met it by more is there."""
    from deploykit_tuning.bench import Bench
    from deploykit_tuning.climb import Climb

    only()
    honest, fallen = Bench.proved, []
    plain = tune(case, tmp_path / "plain", allow=()).ladder[0].sqnr_db

    def proved(self: Any, artifact: Any) -> Any:
        found = honest(self, artifact)
        if fallen and fallen[0] != artifact.recipe.kept:
            return found
        fallen.append(artifact.recipe.kept)
        return replace(found, met=False, failures=("a hair",), margin_db=-0.01)

    def mixed(search: Climb) -> None:
        """Two that meet the goal, the dearer first, as a search by few evaluations finds them."""
        start = search.here.recipe
        layers = [each.name for each in start.layers if each.precision != "float"]
        for count in (len(layers), len(layers) - 1):
            kept = [
                replace(each, precision="float", chosen=True) if each.name in layers[-count:] else each
                for each in start.layers
            ]
            search.attempt(f"mixed: {count}", functools.partial(replace, start, layers=tuple(kept)), detail=count)

    monkeypatch.setattr(Bench, "proved", proved)
    monkeypatch.setattr(rungs, "mixed", mixed)
    plan = tune(case, tmp_path / "a", min_sqnr_db=plain + 0.5, min_placement=0.0, allow=("mixed",))
    proofs = [step for step in plan.ladder if step.step.endswith(": artifact")]
    assert [step.outcome for step in proofs] == ["failed", "kept"]
    assert plan.met and len(plan.recipe.kept) > len(fallen[0])


def test_the_metric_must_not_be_of_calibration_data(case: Any, tmp_path: Path) -> None:
    seen = [{name: tensor.numpy() for name, tensor in feeds.items()} for feeds in case.run.samples]

    def on_seen(session: Any) -> float:
        return float(np.mean([session.run(feeds)["output"].max() for feeds in seen]))

    def on_some(session: Any) -> list[bool]:
        session.run(seen[0])
        return case.right(session)

    with pytest.raises(deploykit.UsageError, match=r"^evaluate= measures on data that calibration saw: ") as caught:
        tune(case, tmp_path / "a", evaluate=on_seen)
    assert "100% of what evaluate= ran is calibration data" in str(caught.value)
    assert not list(tmp_path.iterdir())
    plan = tune(case, tmp_path / "b", evaluate=on_some, max_drop=0.5, allow=())
    assert any("data that calibration saw: 1 of the" in note for note in plan.notes)
    clean = tune(case, tmp_path / "c", evaluate=case.right, max_drop=0.5, allow=())
    assert not any("calibration saw" in note for note in clean.notes)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"allow": ("ptq", "magic")}, "magic"),
        ({"allow": "ptq"}, "not one string"),
        ({"max_drop": 0.1}, "max_drop needs evaluate"),
        ({"min_sqnr_db": "30"}, "min_sqnr_db"),
        ({"min_sqnr_db": float("nan")}, "min_sqnr_db"),
        ({"budget_s": -1}, "budget_s"),
        ({"train": 5}, "train is 5"),
        ({"evaluate": 5}, "evaluate is 5"),
        ({"tolerance": 30.0, "min_sqnr_db": 30.0}, "tolerance is 30.0"),
        ({"recipe": 5}, "recipe is 5"),
        ({"recipe": ""}, "cannot read|not a regular file"),
    ],
)
def test_malformed_arguments_are_refused_before_the_work(arguments: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(deploykit.UsageError, match=says):
        deploykit.tune(object(), "x86-cpu", "int8", output=tmp_path / "a", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_somebody_is_left_alone(case: Any, tmp_path: Path) -> None:
    (tmp_path / "a.tune").mkdir()
    (tmp_path / "a.tune" / "notes.txt").write_text("mine")
    with pytest.raises(deploykit.ArtifactError, match="no state of a search"):
        tune(case, tmp_path / "a")
    assert (tmp_path / "a.tune" / "notes.txt").read_text() == "mine"


def test_two_searches_do_not_write_one_state(case: Any, tmp_path: Path) -> None:
    refused: list[str] = []

    def beside(session: Any) -> float:
        with pytest.raises(deploykit.ArtifactError, match=r"another search is writing to .*a\.tune") as caught:
            tune(case, tmp_path / "a", min_sqnr_db=1.0, allow=())
        refused.append(str(caught.value))
        return 1.0

    plan = tune(case, tmp_path / "a", evaluate=beside, min_sqnr_db=1.0, allow=())
    assert plan.met and "choose another output=" in refused[0]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_search_whose_metric_raised_can_be_called_again_at_once(case: Any, tmp_path: Path) -> None:
    broken = [False, True, False, False]

    def sometimes(session: Any) -> float:
        if broken.pop(0):
            raise ValueError("mine")
        return 1.0

    with pytest.raises(ValueError, match="mine") as caught:  # held, with the frames of the search
        tune(case, tmp_path / "a", evaluate=sometimes, min_sqnr_db=1.0, allow=())
    assert tune(case, tmp_path / "a", evaluate=sometimes, min_sqnr_db=1.0, allow=()).met and caught
    assert broken == [], "the float model was not measured again"


def test_a_state_that_was_cut_is_said_once(case: Any, tmp_path: Path) -> None:
    (tmp_path / "a.tune").mkdir()
    (tmp_path / "a.tune" / "state.json").write_text('{"of": "x"')
    with pytest.raises(deploykit.ArtifactError) as caught:
        tune(case, tmp_path / "a")
    assert str(caught.value).count("is damaged") == 1 and "remove" in str(caught.value)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import Case, draw, net
import deploykit

folder, fatal = Path(sys.argv[1]), int(sys.argv[2])
log = folder / "log"
ARRAYS = [draw(100 + seed).numpy() for seed in range(4)]

def metric(session):
    outputs = [session.run({{session.inputs[0].name: array}})[session.outputs[0].name] for array in ARRAYS]
    with log.open("a") as file:
        file.write(" ".join(f"{{float(output.sum()):.6f}}" for output in outputs) + chr(10))
    if len(log.read_text().splitlines()) == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return -sum(float(abs(output).sum()) for output in outputs)

plan = deploykit.tune(
    net(), "x86-cpu", "int8", example_inputs=(draw(0),), calibration=[draw(seed) for seed in range(12)],
    evaluate=metric, max_drop=100.0, min_sqnr_db=150.0, allow=("ptq",), output=folder / "out",
    strict=False, profile=False, progress=False,
)
print([step.step for step in plan.ladder])
"""


def test_a_killed_search_goes_on_and_measures_nothing_twice(tmp_path: Path) -> None:
    script = tmp_path / "search.py"
    script.write_text(KILLED.format(tests=str(Path(__file__).parent)))

    def search(fatal: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(script), str(tmp_path), str(fatal)],
            capture_output=True, text=True, check=False, env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )  # fmt: skip

    killed = search(fatal=3)  # float model, plain export, then in the middle of the choice of ranges
    assert killed.returncode == -signal.SIGKILL
    before = (tmp_path / "log").read_text().splitlines()
    assert len(before) == 3 and (tmp_path / "out.tune" / "state.json").is_file()
    done = search(fatal=0)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("['ptq', 'ranges: best', ")
    after = (tmp_path / "log").read_text().splitlines()[3:]
    assert after[0] == before[2] and len(after) == 2  # what the kill interrupted, and the artifact
    assert not (tmp_path / "out.tune").exists()


def test_a_state_of_another_metric_is_left_aside() -> None:
    def one(session: Any) -> float:
        return 1.0

    def other(session: Any) -> float:
        return 2.0

    class Metric:
        def __call__(self, session: Any) -> float:
            return 3.0

    assert code_of(one) != code_of(other) and code_of(one) == code_of(one)
    assert "Metric" in code_of(Metric()) and "0x" not in code_of(Metric())
    assert code_of(functools.partial(one)) != code_of(functools.partial(other))
    decorated = [torch.no_grad()(each) for each in (one, other)]
    assert code_of(decorated[0]) == code_of(one) and code_of(decorated[0]) != code_of(decorated[1])


def test_weights_alone_are_rounded_with_data_and_widened(tmp_path: Path) -> None:
    """int4: algorithms that need data have it, and single layers are held in 8 bits before any is float."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.manual_seed(0)
    widths = ((64, 64), (64, 64), (64, 32))
    model = torch.nn.Sequential(*(torch.nn.Linear(*width) for width in widths)).eval()
    plan = deploykit.tune(
        model, "x86-cpu", "int4-weight-only", example_inputs=(torch.randn(1, 64),), min_sqnr_db=100.0, strict=False,
        calibration=list(torch.randn(12, 1, 64)), allow=("rounding", "mixed"), output=tmp_path / "a", **PLAIN,
    )  # fmt: skip
    steps = [step.step for step in plan.ladder if step.outcome in ("kept", "passed over")]
    assert any(step.startswith("rounding: ") for step in steps)
    assert any(step.endswith(" in int8-weights") for step in steps)
    widened = next(step for step in plan.ladder if "int8-weights" in step.step)
    assert widened.sqnr_db > plan.ladder[0].sqnr_db and widened.int8_share < 1.0
    assert widened.predicted_cost > plan.ladder[0].predicted_cost


def test_small_last_layers_of_int4_are_held_in_8_bits(tmp_path: Path) -> None:
    """What ends an int4 network is found without a hand: a narrow head behind a norm, and no layer in float."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.manual_seed(0)
    nn = torch.nn
    body = [layer for _ in range(3) for layer in (nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))]
    model = nn.Sequential(*body, nn.LayerNorm(64), nn.Linear(64, 32)).eval()
    with torch.no_grad():
        for number, layer in enumerate(body):
            if isinstance(layer, nn.Linear):  # all but the head is on the grid of 4 bits already
                values = torch.randint(-7, 8, layer.weight.shape, generator=torch.Generator().manual_seed(number))
                values.view(-1, 8)[:, 0] = -8
                layer.weight.copy_(values / 64)
    data = list(torch.randn(12, 1, 64, generator=torch.Generator().manual_seed(9)))
    plan = deploykit.tune(
        model, "x86-cpu", "int4-weight-only", example_inputs=(data[0],), min_sqnr_db=33.0, calibration=data,
        allow=("mixed",), output=tmp_path / "a", **PLAIN,
    )  # fmt: skip
    assert [layer.module_path for layer in plan.recipe.layers if layer.chosen] == ["10"]
    assert plan.recipe.wider and plan.best.status == "verified"


def test_a_gate_that_no_rung_changes_ends_the_climb(tmp_path: Path) -> None:
    """A transposed convolution has no int8 kernel in ONNX Runtime: what is missed is placement, and not accuracy."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    class Widened(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.wide, self.head = torch.nn.ConvTranspose1d(8, 16, 3), torch.nn.Linear(16, 8)

        def forward(self, x: Any) -> Any:
            return self.head(self.wide(x).transpose(1, 2))

    data = list(torch.randn(6, 1, 8, 4, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(deploykit.PlacementError) as caught:
        deploykit.tune(
            Widened().eval(), "x86-cpu", "int8", example_inputs=(data[0],), calibration=data, min_placement=0.9,
            output=tmp_path / "a", **PLAIN,
        )  # fmt: skip
    steps = told(caught.value.ladder)
    assert steps[:2] == [("ptq", "kept"), ("ptq: artifact", "failed")]
    assert {outcome for _, outcome in steps[2:]} == {"skipped"}
    assert "multiply-accumulates" in caught.value.ladder[2].reason


def test_an_algorithm_is_run_once_for_all_that_stand_on_it(case: Any, tmp_path: Path, only: Any) -> None:
    """What is tried on top of an algorithm that was kept is not prepared from the beginning again."""
    ran: list[str] = []

    def named(name: str, changes: Any) -> Algorithm:
        def run(prepared: Any, samples: Any) -> Any:
            ran.append(name)
            return changes(prepared, samples)

        return Algorithm(name, run, cost="none")

    idle = lambda prepared, samples: prepared  # noqa: E731
    only(named("a", finer), named("b", idle), named("c", idle))
    arguments: dict[str, Any] = {"min_sqnr_db": 180.0, "min_placement": 0.0, "strict": False}
    plan = tune(case, tmp_path / "a", allow=("rounding",), **arguments)
    assert [step.name for step in plan.recipe.algorithms] == ["bias-correction", "a"]
    assert ran == ["a", "b", "c"]
    proved = next(step for step in plan.ladder if step.step == "rounding: a: artifact")
    assert proved.sqnr_db == pytest.approx(plan.ladder[1].sqnr_db, abs=3.0)


def test_recurrent_layers_are_refused_with_what_they_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deploykit_targets._schemes import recurrent

    monkeypatch.setattr(recurrent, "MOST_STEPS", 19)
    model, example = ZOO["gru_classifier"]()
    asked: dict[str, Any] = {"example_inputs": example, "calibration": [example] * 4, "min_sqnr_db": 20.0}
    with pytest.raises(
        deploykit.PlacementError, match=r"up to 19 steps .* these are 20: shorten the sequence"
    ) as caught:
        deploykit.tune(model, "x86-cpu", "int8", output=tmp_path / "a", **asked, **PLAIN)
    assert [step.outcome for step in caught.value.ladder[2:]] == ["skipped"] * 4, "no rung changes what has a kernel"


@pytest.mark.parametrize("precision", ["int8", "int8-dynamic"])
def test_an_lstm_is_int8_where_a_kernel_rounds_its_steps(precision: str, tmp_path: Path) -> None:
    model, example = ZOO["lstm_classifier"]()
    asked: dict[str, Any] = {"example_inputs": example, "calibration": [example] * 4, "min_sqnr_db": 30.0}
    plan = deploykit.tune(model, "x86-cpu", precision, output=tmp_path / "a", **asked, **PLAIN)
    assert plan.met and plan.best.achieved.as_asked_fraction == 1.0
    assert deploykit.export(model, "x86-cpu", recipe=plan.recipe, example_inputs=example, calibration=[example] * 4,
                            output=tmp_path / "b", **PLAIN).status == "verified"  # fmt: skip


def test_simulations_that_a_target_makes_are_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Float16 beside the integers is another graph with all the weights, made for each candidate."""
    pytest.importorskip("onnx", reason="ONNX is not installed")
    from deploykit.plugin.registry import toolchain
    from deploykit_tuning.bench import Bench

    kind, made, held = type(toolchain("tensorrt")), list[Any](), list[int]()
    honest, simulated = kind.simulate, Bench.simulated

    def simulate(self: Any, prepared: Any) -> Any:
        made.append(honest(self, prepared))
        return made[-1]

    def measured(self: Any, recipe: Any) -> Any:
        found = simulated(self, recipe)
        held.append(sum(buffer.numel() for buffer in made[-1].graph_module.buffers()))
        assert made[-1] is not self.prepared(recipe).simulation, "another one"
        return found

    monkeypatch.setattr(kind, "simulate", simulate)
    monkeypatch.setattr(Bench, "simulated", measured)
    model, example = ZOO["transformer_encoder"]()
    deploykit.tune(
        model, "jetson-orin", "int8", example_inputs=example, calibration=[example] * 4, min_sqnr_db=1.0, allow=(),
        output=tmp_path / "a", strict=False, **PLAIN,
    )  # fmt: skip
    assert held and not any(held)
    assert len(made) > len(held), "the artifact's own is another"
    assert not any(buffer.numel() for each in made for buffer in each.graph_module.buffers())
