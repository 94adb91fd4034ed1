"""What candidates have in common is computed once, and is bit by bit what each would have computed alone."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deploykit
from deploykit import pipeline
from deploykit_calibration.algorithms import gptq
from deploykit_calibration.algorithms.gptq import round_weights
from deploykit_calibration.reuse import once, reusing
from deploykit_calibration.weight_rounding import round_for_inputs


class Branches(nn.Module):
    """A branch beside another, a layer that is called twice, and one behind both."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.left, self.right = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.twice, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.first(x).relu()
        both = self.left(found).relu() + self.twice(self.right(found)).relu()
        result: Tensor = self.last(self.twice(both).relu())
        return result


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each layer that is rounded."""
    made: list[int] = []

    def count(*args: Any, **kwargs: Any) -> Any:
        made.append(1)
        return round_for_inputs(*args, **kwargs)

    monkeypatch.setattr(gptq, "round_for_inputs", count)
    return made


def data(count: int, seed: int = 0) -> list[Tensor]:
    return list(torch.randn(count, 4, 6, generator=torch.Generator().manual_seed(seed)))


def candidate(captured: Any, run: Any, kept: Any) -> Any:
    made = pipeline.prepare(pipeline.request("x86-cpu", "int8"), captured, run)
    return replace(made, kept=dict.fromkeys(kept, "for the test"))


def weights_of(prepared: Any, samples: Any) -> dict[str, Tensor]:
    made = round_weights(prepared, samples).captured.graph_module
    return {name: value.clone() for name, value in made.state_dict().items()}


def test_every_candidate_has_the_weights_that_it_would_have_alone(counted: list[int]) -> None:
    captured = pipeline.capture(Branches().eval(), example_inputs=(data(1)[0],))
    run = pipeline.calibrate(captured, data(12), progress=False)
    names = [layer.name for layer in candidate(captured, run, ()).layers if layer.kind == "linear"]
    assert len(names) == 6
    sets = [kept for count in (0, 1, 2) for kept in itertools.combinations(names, count)]
    alone = [weights_of(candidate(captured, run, kept), run.samples) for kept in sets]
    before = len(counted)
    counted.clear()
    with reusing():
        together = [weights_of(candidate(captured, run, kept), run.samples) for kept in sets]
    for kept, one, other in zip(sets, alone, together, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), f"{name}, with {kept} in float"
    assert len(counted) < 0.75 * before, "of the layers that nothing differs before, most were known"


def test_other_samples_other_weights_and_samples_that_changed_are_another_thing(counted: list[int]) -> None:
    captured = pipeline.capture(nn.Linear(6, 3).eval(), example_inputs=(data(1)[0],))
    run = pipeline.calibrate(captured, data(8), progress=False)
    with reusing():
        weights_of(candidate(captured, run, ()), run.samples)
        weights_of(candidate(captured, run, ()), run.samples)
        assert len(counted) == 1
        next(iter(run.samples[0].values())).mul_(2.0)
        weights_of(candidate(captured, run, ()), run.samples)
        assert len(counted) == 2
        other = pipeline.capture(nn.Linear(6, 3).eval(), example_inputs=(data(1)[0],))
        weights_of(candidate(other, pipeline.calibrate(other, data(8), progress=False), ()), run.samples)
        assert len(counted) == 3
    weights_of(candidate(captured, run, ()), run.samples)
    weights_of(candidate(captured, run, ()), run.samples)
    assert len(counted) == 5, "nothing is kept when the search is over"


def test_the_last_results_of_a_thing_are_kept_and_no_more() -> None:
    made: list[int] = []

    def make(value: int) -> int:
        return once("thing", value, lambda: made.append(value) or value)  # type: ignore[func-returns-value]

    with reusing():
        assert [make(value) for value in (1, 2, 1, 3, 1, 2)] == [1, 2, 1, 3, 1, 2]
        with reusing():
            assert make(2) == 2
    assert made == [1, 2, 3, 2]


def test_a_search_ends_with_the_same_recipe_and_the_same_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: list[int]
) -> None:
    captured = pipeline.capture(Branches().eval(), example_inputs=(data(1)[0],))
    run = pipeline.calibrate(captured, data(24), progress=False)
    plans, roundings = [], []
    for name, block in (("with", reusing), ("without", contextlib.nullcontext)):
        monkeypatch.setattr("deploykit_tuning.tuning.reusing", block)
        plan = deploykit.tune(
            captured, "x86-cpu", "int8", calibration=run, min_sqnr_db=52.0, allow=("mixed",), algorithms=("gptq",),
            min_placement=0.1, strict=False, profile=False, progress=False, output=tmp_path / name,
        )  # fmt: skip
        plans.append(plan)
        roundings.append(len(counted))
        counted.clear()
    one, other = plans
    assert any(step.step.startswith("mixed") for step in one.ladder)
    assert "gptq" in [step.name for step in one.recipe.algorithms]
    assert one.recipe == other.recipe and one.best.manifest.files == other.best.manifest.files
    assert one.best.fingerprint == other.best.fingerprint
    assert roundings[0] < roundings[1]
