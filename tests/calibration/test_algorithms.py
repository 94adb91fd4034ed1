"""Algorithms: found by name, refused with words, and one in a file of its own serves every target and precision."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deploykit
from deploykit import pipeline
from deploykit.capture import capture
from deploykit.capture.calls import stored
from deploykit.contract.decibels import sqnr_db
from deploykit.contract.errors import (
    CalibrationError,
    ConversionError,
    DeploykitError,
    MissingDependencyError,
    UsageError,
)
from deploykit.plugin.registry import resolve
from deploykit_calibration import algorithms
from deploykit_calibration.algorithms import SAMPLES, Algorithm, algorithm, apply, register
from deploykit_calibration.prepared import Prepared
from deploykit_calibration.reweigh import with_weights

EXAMPLES = Path(__file__).parents[2] / "examples"
DIRECTIONS = torch.randn(4, 48, generator=torch.Generator().manual_seed(99))


def inputs(count: int = 32) -> list[Tensor]:
    """Few directions, as those of real layers are: what a rounding does shows in the output."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 4, generator=generator) @ DIRECTIONS for _ in range(count)]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(algorithms, "_registered", {})


@pytest.fixture(scope="module")
def calibrated() -> Any:
    torch.manual_seed(0)
    captured = capture(nn.Sequential(nn.Linear(48, 32)).eval(), example_inputs=(inputs(1)[0],))
    return captured, pipeline.calibrate(captured, inputs(), progress=False)


@pytest.fixture
def gptq(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The example, as another distribution would register it."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import own_algorithm

    yield register(own_algorithm.GPTQ).name
    sys.modules.pop("own_algorithm")


@pytest.mark.parametrize("target", ["x86-cpu", "jetson-orin", "android", "iphone-15"])
def test_one_in_a_file_of_its_own_serves_every_target(calibrated: Any, gptq: str, target: str) -> None:
    skip_without(target)
    captured, run = calibrated
    plain = pipeline.prepare(pipeline.request(target, "int8"), captured, run)
    better = pipeline.prepare(pipeline.request(target, "int8", algorithms=(gptq,)), captured, run)
    assert better.applied[-1] == gptq and better.reference is captured
    assert weight_error_db(better, captured) > weight_error_db(plain, captured) + 6
    assert [layer.precision for layer in better.layers] == [layer.precision for layer in plain.layers]


def skip_without(target: str) -> None:
    try:
        resolve(target).target.check_installed(export=True)
    except MissingDependencyError as error:
        pytest.skip(f"{target} is exported elsewhere: {error.message}")


def weight_of(captured: Any) -> Tensor:
    weight = stored(captured.graph_module, "0.weight")
    assert isinstance(weight, Tensor)
    return weight.detach()


def weight_error_db(prepared: Prepared, captured: Any) -> float:
    """SQNR in dB of the layer with its weight rounded, and nothing else, over inputs like the calibration's."""
    from deploykit_calibration.weights import weight_quant

    weight = weight_of(prepared.captured)
    rounded = weight_quant(weight, 0, replace(prepared.scheme, reduce_range=False)).rounded(weight)
    rows = torch.cat(inputs())
    want = rows @ weight_of(captured).T
    return sqnr_db(float(want.square().sum()), float((want - rows @ rounded.T).square().sum()))


@pytest.mark.parametrize("target", ["android", "iphone-15"])
def test_weight_only_precisions_are_served_too(calibrated: Any, gptq: str, target: str, tmp_path: Path) -> None:
    skip_without(target)
    captured, run = calibrated
    reached = {}
    for names in ((), (gptq,)):
        request = pipeline.request(target, "int8-weight-only", algorithms=names)
        folder = tmp_path / "-".join(("a", *names))
        folder.mkdir()
        prepared = pipeline.prepare(request, captured, run)
        report = pipeline.judge(prepared, pipeline.lower(prepared, folder), folder, run)
        reached[names] = report.sqnr_db
    assert reached[gptq,] > reached[()] + 3


def test_the_default_ones_are_found_and_say_what_they_cost() -> None:
    for name in ("bias-correction", "best", "gptq"):
        found = algorithm(name)
        assert found.name == name and found.cost


def test_what_is_not_there_is_refused_with_what_is() -> None:
    with pytest.raises(UsageError, match="no algorithm 'gptqq'") as caught:
        algorithm("gptqq")
    assert "bias-correction" in str(caught.value)
    register(Algorithm("own", lambda prepared, samples: prepared, cost="none"))
    with pytest.raises(UsageError, match="'own' already"):
        register(Algorithm("own", lambda prepared, samples: prepared, cost="none"))


def test_samples_are_asked_for_before_it_runs(calibrated: Any) -> None:
    captured, run = calibrated
    register(Algorithm("asks", lambda prepared, samples: prepared, cost="none", needs=frozenset({SAMPLES})))
    request = pipeline.request("x86-cpu", "int8", algorithms=("asks",))
    with pytest.raises(CalibrationError, match="'asks' needs samples") as caught:
        pipeline.prepare(request, captured, replace(run, samples=[]))
    assert "calibration=" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "words"), [("no_such_module_of_ours:X", "cannot be loaded"), ("json:loads", "is no Algorithm")]
)
def test_a_broken_registration_names_its_owner(
    value: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[deploykit.algorithms]\nbroken = {value}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DeploykitError, match=words) as caught:
        algorithm("broken")
    assert value in str(caught.value)


def test_algorithms_run_in_the_order_of_the_request(calibrated: Any) -> None:
    captured, run = calibrated
    for name in ("first", "second"):
        register(Algorithm(name, lambda prepared, samples: prepared, cost="none"))
    prepared = pipeline.prepare(pipeline.request("x86-cpu", algorithms=("second", "first")), captured, run)
    assert prepared.applied == ("bias-correction", "second", "first")
    assert apply(prepared, ()) is prepared


def test_other_weights_make_another_model_and_leave_the_first_alone(calibrated: Any) -> None:
    captured, _ = calibrated
    before = weight_of(captured).clone()
    other = with_weights(captured, {"0.weight": torch.zeros_like(before)})
    assert other.fingerprint != captured.fingerprint and torch.equal(
        captured.graph_module.get_parameter("0.weight"), before
    )
    (got,) = other.run(other.example_feeds()).values()
    torch.testing.assert_close(got, stored(captured.graph_module, "0.bias").expand_as(got))
    with pytest.raises(ConversionError, match=r"stores no 0\.weights"):
        with_weights(captured, {"0.weights": before})
    with pytest.raises(ConversionError, match=r"stores no 0\.weight of shape"):
        with_weights(captured, {"0.weight": before[:1]})


def test_weight_only_exports_run_what_is_asked(gptq: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(48, 32)).eval()
    asked: dict[str, Any] = {"example_inputs": (inputs(1)[0],), "profile": False, "progress": False}
    made = deploykit.export(
        model, "x86-cpu", "int8-weight-only", algorithms=(gptq,), calibration=inputs(), output=tmp_path / "a", **asked
    )
    assert made.recipe is not None and gptq in [step.name for step in made.recipe.algorithms]
    with pytest.raises(CalibrationError, match="own-gptq: there is no data"):
        deploykit.export(model, "x86-cpu", "int8-weight-only", algorithms=(gptq,), output=tmp_path / "b", **asked)


def test_what_fails_inside_is_said_with_its_name(calibrated: Any) -> None:
    def fail(prepared: Prepared, samples: Any) -> Prepared:
        raise ValueError("a bad matrix")

    register(Algorithm("fails", fail, cost="none"))
    register(Algorithm("returns", lambda prepared, samples: None, cost="none"))  # type: ignore[arg-type,return-value]
    register(Algorithm("decides", lambda prepared, samples: replace(prepared, decided={"a": 1}), cost="none"))
    for name, words in (
        ("fails", "'fails' failed: ValueError: a bad matrix"),
        ("returns", "'returns' returned NoneType"),
        ("decides", "'decides' decides 'a', which it does not declare"),
    ):
        with pytest.raises(DeploykitError, match=words):
            pipeline.prepare(pipeline.request("x86-cpu", algorithms=(name,)), *calibrated)
