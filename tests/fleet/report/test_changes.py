"""What is a finding, what is a remark, and what is not compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from deploykit.contract.host import Host
from deploykit.contract.precision import Evidence
from deploykit.contract.session import OpTime
from deploykit.judge.conditions import Conditions
from deploykit.judge.parity import TaskMetric
from deploykit.judge.profiling import Percentiles
from deploykit.judge.scores import Fall
from deploykit_fleet.report.changes import compare
from deploykit_fleet.report.entries import read_book

from .conftest import manifest, parity, profile, runs


def verdicts(comparison) -> dict[str, str]:
    return {change.what: change.verdict for change in comparison.changes}


@pytest.fixture
def beside(artifact):
    """Compare two artifacts that are given as (manifest, profile)."""

    def compared(old, new):
        return compare(*(read_book(artifact(name, *of)) for name, of in (("old", old), ("new", new))))

    return compared


def test_a_planted_regression_is_found_with_its_layer(beside) -> None:
    ops = [OpTime("stem", "conv", "stem", 500.0), OpTime("head", "gemm", "head", 500.0)]
    slower = [ops[0], replace(ops[1], median_us=600.0)]
    old = profile(runs(1), op_times=tuple(ops))
    found = beside((manifest(), old), (manifest(), profile([1.1 * each for each in runs(2)], op_times=tuple(slower))))
    (finding,) = found.findings
    assert finding.what == "latency" and finding.shift.estimate == pytest.approx(0.1, abs=0.02)
    assert "head +100 µs" in finding.why and "stem" not in finding.why


def test_no_change_is_no_finding(beside) -> None:
    for seed in range(20):
        found = beside((manifest(), profile(runs(seed))), (manifest(), profile(runs(seed + 50))))
        assert not found.findings and verdicts(found) == {"latency": "same"}


def test_a_machine_that_slowed_is_told_from_an_artifact_that_did(beside) -> None:
    def slowed(own: float, other: float, model: str = "net"):
        times, baseline = ([by * each for each in runs(seed)] for seed, by in ((3, own), (4, 3.0 * other)))
        return manifest(model=model), profile(times, baseline)

    assert verdicts(beside(slowed(1.0, 1.0), slowed(1.15, 1.15))) == {"latency": "machine"}
    assert verdicts(beside(slowed(1.0, 1.0), slowed(1.15, 1.0))) == {"latency": "worse"}
    assert verdicts(beside(slowed(1.0, 1.0), slowed(0.8, 1.0))) == {"latency": "better"}
    assert verdicts(beside(slowed(1.0, 1.0), slowed(0.8, 0.8))) == {"latency": "machine"}
    # of another network the float build is another, too, and excuses nothing
    assert verdicts(beside(slowed(1.0, 1.0), slowed(1.15, 1.15, "deeper"))) == {"latency": "worse"}


def test_measured_in_turns_with_the_old_one(beside, artifact) -> None:
    old = artifact("before", manifest(size=20_001), profile(runs(1)))
    fingerprint = read_book(old).entries[0].fingerprint
    drifting = 2.0 * np.linspace(1.0, 1.4, 100)  # another machine: alone it would not compare
    times, baseline = drifting * 1.08 * runs(5), drifting * runs(6)
    host = replace(profile(runs(1)).host, cores=64)
    new = artifact(
        "now", manifest(), profile(times.tolist(), baseline.tolist(), baseline_fingerprint=fingerprint, host=host)
    )
    found = compare(read_book(old), read_book(new))
    (finding,) = found.findings
    assert finding.shift.paired and finding.shift.estimate == pytest.approx(0.08, abs=0.02)


@pytest.mark.parametrize(
    "other",
    [
        {"host": Host("aarch64", (), 4, "Linux")},
        {"evidence": Evidence.REFERENCE},
    ],
)
def test_other_machines_and_evidence_are_not_compared(beside, other) -> None:
    found = beside((manifest(), profile(runs(1))), (manifest(), profile([2.0 * each for each in runs(2)], **other)))
    assert verdicts(found) == {"latency": "elsewhere"} and not found.findings


def test_without_single_runs_nothing_is_claimed(beside) -> None:
    found = beside((manifest(), profile(runs(1), kept=False)), (manifest(), profile([2 * x for x in runs(2)])))
    assert verdicts(found) == {"latency": "untested"}


def test_what_was_measured_on_a_busy_machine_is_not_tested(beside) -> None:
    """Half of the runs waited for something else: that the others did not is no more than a hope."""
    busy = [each * (1.0 if index % 5 < 2 else 2.0 + index % 7) for index, each in enumerate(runs(2, 1.1))]
    for old, new in ((runs(1), busy), (busy, runs(1))):
        found = beside((manifest(), profile(old)), (manifest(), profile(new)))
        assert verdicts(found) == {"latency": "untested"} and "busy" in found.changes[0].why


def test_what_was_measured_while_the_machine_throttled_is_not_tested(beside) -> None:
    hot = replace(profile(runs(2, 1.2)), conditions=Conditions(throttled=("the clock fell",), samples=3))
    found = beside((manifest(), profile(runs(1))), (manifest(), hot))
    assert verdicts(found) == {"latency": "untested"} and "throttled when the new one" in found.changes[0].why


def test_a_profile_that_was_altered_is_a_finding(beside) -> None:
    altered = replace(profile(runs(2)), latency_ms=Percentiles.of([2.0 * each for each in runs(2)]))
    assert verdicts(beside((manifest(), profile(runs(1))), (manifest(), altered)))["profile"] == "worse"


def test_size_state_and_placement_do_not_waver(beside) -> None:
    found = beside((manifest(), None), (manifest(size=21_000, left=("head",), status="failed"), None))
    assert verdicts(found) == {"state": "worse", "size": "worse", "placement": "worse"}
    assert next(change.why for change in found.changes if change.what == "placement") == "head is float32"
    assert verdicts(beside((manifest(), None), (manifest(size=20_010), None))) == {"size": "same"}


def test_accuracy_is_tested_on_its_samples(beside) -> None:
    names = ("stem", "body.0", "head")

    def of(sqnr_db: float, **other):
        return manifest(report=parity(names, sqnr_db, **other)), None

    assert verdicts(beside(of(40.0), of(36.0))) == {"SQNR": "worse"}
    assert verdicts(beside(of(36.0), of(40.0))) == {"SQNR": "better"}
    assert verdicts(beside(of(40.0), of(39.5))) == verdicts(beside(of(140.0), of(120.0))) == {}
    wavering = {"noise_db": np.linspace(20.0, 60.0, 16).tolist()}
    assert verdicts(beside(of(40.0, **wavering), of(38.0, **wavering))) == {"SQNR": "same"}
    assert verdicts(beside(of(40.0), of(36.0, samples=8))) == {"SQNR": "elsewhere"}
    assert verdicts(beside(of(40.0, samples=4), of(36.0, samples=4))) == {"SQNR": "untested"}


def test_a_metric_is_tested_by_its_intervals(beside) -> None:
    def of(value: float, width: float | None):
        fall = None if width is None else Fall(0.9 - value - width, 0.9 - value + width, 1000, "McNemar")
        return manifest(report=parity(("stem",), metric=TaskMetric(0.9, value, 0.1, fall))), None

    assert verdicts(beside(of(0.89, 0.01), of(0.85, 0.01)))["metric"] == "worse"
    assert verdicts(beside(of(0.89, 0.05), of(0.85, 0.05)))["metric"] == "same"
    assert verdicts(beside(of(0.89, None), of(0.85, None)))["metric"] == "untested"


def test_many_comparisons_are_counted_together(tmp_path, artifact) -> None:
    """What would be a finding alone is none among 200 of the kind, or of no change."""
    for release, seed in (("old", 0), ("new", 1000)):
        for index in range(200):
            artifact(f"{release}/{index}", None, profile(runs(seed + index, count=40)))
    found = compare(read_book(tmp_path / "old"), read_book(tmp_path / "new"))
    assert len(found.changes) == 200 and not found.findings


def test_what_came_and_went(artifact, tmp_path) -> None:
    for name in ("old/a", "old/b", "new/b", "new/c"):
        artifact(name)
    found = compare(read_book(tmp_path / "old"), read_book(tmp_path / "new"))
    assert (found.added, found.gone, found.changes) == (("c",), ("a",), ())
