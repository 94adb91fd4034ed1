"""Profiling: what is counted and recorded. Nothing here asserts a time."""

import itertools
import json
import sys

import numpy as np
import pytest

from deploykit.contract.precision import Evidence
from deploykit.contract.session import FunctionSession
from deploykit.contract.tensors import TensorSpec
from deploykit.judge.profiling import (
    MIN_RUNS,
    SETTLING_RUNS,
    TURN_RUNS,
    WARM_UP_RUNS,
    Baseline,
    Effort,
    Measuring,
    Percentiles,
    Times,
    _goes_on,
    batch_size,
    has_dynamic_batch,
    measure,
    measure_interleaved,
    resize_batch,
    throughput_by_batch,
)
from deploykit.places.memory import peak_memory_bytes

QUICK = Effort(seconds=0.0, max_runs=MIN_RUNS)
FIXED = (TensorSpec("x", (2, 3), "float32"),)
DYNAMIC = (TensorSpec("x", ("batch", 3), "float32"), TensorSpec("ids", ("batch",), "int64"))
FEEDS = {"x": np.ones((2, 3), np.float32)}


def counting(inputs, calls, name="s", threads=1):
    return FunctionSession(lambda feeds: calls.append((name, len(feeds["x"]))) or {}, inputs, (), threads=threads)


def test_percentiles_against_numpy():
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    found = Percentiles.of(values)
    assert (found.p50, found.mean, found.minimum) == (3.0, 3.0, 1.0)
    assert found.p90 == pytest.approx(4.6) and found.p99 == pytest.approx(np.percentile(values, 99))
    assert Percentiles.of([7.0]) == Percentiles(7.0, 7.0, 7.0, 7.0, 7.0)


def test_every_run_is_kept_in_the_order_of_measuring():
    own, baseline = counting(FIXED, []), Baseline("fp32 artifact", counting(FIXED, []), 1)
    found = measure(own, FEEDS, Measuring(1, Evidence.DEVICE, effort=QUICK), baseline)
    assert len(found.times.latency_ms) == len(found.times.baseline_ms) == found.runs == MIN_RUNS
    assert np.median(found.times.latency_ms) == pytest.approx(found.latency_ms.p50, rel=1e-3)
    assert Times.of([1.23456e-5, 123456.0]).latency_ms == (1.235e-5, 123500.0)


def test_sessions_take_turns_after_warming_up():
    calls = []
    sessions = [counting(FIXED, calls, "own"), counting(FIXED, calls, "baseline")]
    times, warm_up = measure_interleaved(sessions, FEEDS, QUICK)
    order = [name for name, _ in calls]
    assert warm_up == WARM_UP_RUNS
    assert order[: 2 * warm_up] == ["own"] * warm_up + ["baseline"] * warm_up
    turns = [(name, len(list(group))) for name, group in itertools.groupby(order[2 * warm_up :])]
    assert [name for name, _ in turns] == ["own", "baseline"] * (MIN_RUNS // TURN_RUNS)
    assert all(count >= SETTLING_RUNS + TURN_RUNS for _, count in turns)
    assert [len(own) for own in times] == [MIN_RUNS, MIN_RUNS]
    assert all(value >= 0.0 for own in times for value in own)


def test_a_busy_machine_is_measured_for_longer():
    """By its decision alone: no test waits for a machine to be busy."""
    calm, busy = [1.0] * 60 + [9.0] * 40, [1.0] * 40 + [9.0] * 60
    assert _goes_on(calm[: MIN_RUNS - 1], 99.0, 1.0) and _goes_on(calm, 0.9, 1.0)
    assert not _goes_on(calm, 1.1, 1.0)
    assert _goes_on(busy, 1.1, 1.0) and _goes_on(busy, 2.9, 1.0) and not _goes_on(busy, 3.1, 1.0)
    assert not _goes_on(busy, 0.1, 0.0)


def test_runs_are_bounded_above():
    times, _ = measure_interleaved([counting(FIXED, [])], FEEDS, Effort(seconds=60.0, max_runs=23))
    assert len(times[0]) == 23


def test_a_fixed_batch_is_measured_at_its_own_size_only():
    assert throughput_by_batch(counting(FIXED, []), FEEDS, QUICK).keys() == {"2"}


def test_a_dynamic_batch_is_measured_at_several_sizes():
    calls = []
    feeds = {**FEEDS, "ids": np.arange(2)}
    found = throughput_by_batch(counting(DYNAMIC, calls), feeds, Effort(seconds=0.0, batch_sizes=(1, 5)))
    assert list(found) == ["1", "2", "5"] and all(value > 0 for value in found.values())
    assert {size for _, size in calls} == {1, 2, 5}


@pytest.mark.parametrize(
    ("inputs", "dynamic"),
    [
        (DYNAMIC, True),
        (FIXED, False),
        ((*DYNAMIC, *FIXED), False),
        ((TensorSpec("x", (), "float32"),), False),
        ((), False),
    ],
)
def test_what_counts_as_a_dynamic_batch(inputs, dynamic):
    assert has_dynamic_batch(inputs) is dynamic


def test_batch_size_and_resizing():
    assert batch_size(FIXED, FEEDS) == 2
    assert batch_size((TensorSpec("x", (), "float32"),), {"x": np.float32(1.0)}) == 1
    rows = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(resize_batch({"x": rows}, 3)["x"], np.concatenate([rows, rows[:1]]))
    np.testing.assert_array_equal(resize_batch({"x": rows}, 1)["x"], rows[:1])


def test_measure_records_what_it_was_told_and_what_it_counted():
    session, baseline = counting(FIXED, [], threads=3), counting(FIXED, [])
    measuring = Measuring(1234, Evidence.DEVICE, memory_bytes=99, effort=QUICK)
    profile = measure(session, FEEDS, measuring, Baseline("fp32 artifact", baseline, 5000))
    assert (profile.size_bytes, profile.peak_memory_bytes, profile.threads, profile.batch_size) == (1234, 99, 3, 2)
    assert (profile.baseline, profile.baseline_size_bytes) == ("fp32 artifact", 5000)
    assert profile.worth_it == profile.baseline_latency_ms.p50 / profile.latency_ms.p50
    assert profile.throughput_per_s == profile.throughput_by_batch["2"]
    assert (profile.runs, profile.warm_up, profile.evidence) == (MIN_RUNS, WARM_UP_RUNS, Evidence.DEVICE)
    assert profile.host.cores >= 1


def test_worth_it_is_unknown_without_a_baseline():
    profile = measure(counting(FIXED, []), FEEDS, Measuring(1, Evidence.DEVICE, effort=QUICK))
    assert profile.worth_it is None and profile.baseline == ""


def test_an_emulator_is_never_timed():
    with pytest.raises(ValueError, match="emulation"):
        measure(counting(FIXED, []), FEEDS, Measuring(1, Evidence.EMULATOR, effort=QUICK))


def test_threads_reach_the_runtime(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("deploykit.plugin.proves.peak_memory_bytes", lambda _: None)
    artifact, target = toy.write_artifact(tmp_path / "a"), toy.ToyTarget()
    profile = target.profile(artifact, baseline=("itself", artifact), effort=Effort(0.0, MIN_RUNS, threads=1))
    assert profile.threads == 1 and profile.baseline == "itself"


def test_peak_memory_is_taken_from_a_process_of_its_own(toy, toy_path, tmp_path, monkeypatch):
    artifact = toy.write_artifact(tmp_path / "a")
    path = [*map(str, toy_path), *filter(None, sys.path)]
    monkeypatch.setenv("PYTHONPATH", ":".join(path))
    found = peak_memory_bytes(artifact)
    assert isinstance(found, int) and found >= 0


def test_peak_memory_is_unknown_where_the_child_fails(toy, tmp_path):
    artifact = toy.write_artifact(tmp_path / "a")
    artifact.entry.unlink()
    assert peak_memory_bytes(artifact) is None


def test_profile_survives_the_file(toy, tmp_path):
    artifact = toy.write_artifact(tmp_path / "a", profile=toy.make_profile(notes=("a note",)))
    assert artifact.profile == toy.make_profile(notes=("a note",))
    record = json.loads((artifact.path / "profile.json").read_text())
    assert record["artifact"] == artifact.fingerprint
