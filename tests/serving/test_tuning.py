"""The search ends near the best there is, and never above its limits; what it writes is what `serve` takes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.cli import main
from deploykit.contract.errors import PerformanceError, UsageError
from deploykit_serving.settings import Settings, TunedSettings, read_settings
from deploykit_serving.sizes import parse_size
from deploykit_serving.tuning import Candidate, Limits, Measured, candidates, search

MIB = 1 << 20


class Machine:
    """A made-up machine: throughput saturates, latency grows with the batch, memory with everything."""

    def __init__(
        self, *, cores: int, serial: float, overhead: float, row: float, each_mib: float, noise: Sequence[float]
    ):
        self.cores, self.serial, self.overhead, self.row, self.each_mib = cores, serial, overhead, row, each_mib
        self._noise = itertools.cycle(noise)
        self.looks = 0

    def truth(self, one: Candidate) -> Measured:
        speed = 1 / (self.serial + (1 - self.serial) / one.threads)
        run_ms = self.overhead + one.max_batch * self.row / speed
        rows = one.instances * one.max_batch / run_ms * 1e3
        peak = (60 + one.instances * (self.each_mib + one.threads + one.max_batch * 0.5)) * MIB
        return Measured(one, rows, 2 * run_ms, int(peak))

    def once(self, candidate: Candidate) -> Measured:
        self.looks += 1
        found, noise = self.truth(candidate), next(self._noise)
        return Measured(candidate, found.rows_per_s * noise, found.p99_ms / noise, found.peak_bytes)

    def in_turns(self, wanted: Sequence[Candidate], turns: int) -> dict[Candidate, list[Measured]]:
        return {one: [self.truth(one)] * turns for one in wanted}


@settings(max_examples=150, deadline=None)
@given(
    st.builds(
        Machine,
        cores=st.integers(1, 16),
        serial=st.floats(0, 1),
        overhead=st.floats(0, 5),
        row=st.floats(0.05, 20),
        each_mib=st.floats(1, 200),
        noise=st.lists(st.floats(0.96, 1.04), min_size=1, max_size=7),
    ),
    st.one_of(st.none(), st.floats(70, 2000)),
    st.one_of(st.none(), st.floats(1, 500)),
)
def test_it_ends_within_five_percent_of_exhaustive_search_and_within_its_limits(machine, memory_mib, p99_ms) -> None:
    limits = Limits(None if memory_mib is None else int(memory_mib * MIB), p99_ms)
    among = candidates(batched=True, cores=machine.cores)
    passing = [truth for truth in map(machine.truth, among) if not limits.misses(truth)]
    try:
        found = search(among, machine, limits)
    except PerformanceError:
        # noise may hide the only ones that just pass; never one that passes with room
        roomy = Limits(limits.max_memory_bytes, None if p99_ms is None else p99_ms / 1.05)
        assert not [one for one in passing if not roomy.misses(one)]
        return
    assert not limits.misses(machine.truth(found.best.candidate))
    roomy_best = max((one.rows_per_s for one in passing if p99_ms is None or one.p99_ms * 1.05 <= p99_ms), default=0.0)
    assert machine.truth(found.best.candidate).rows_per_s >= 0.95 * roomy_best
    assert found.front and all(not limits.misses(one) for one in found.front if one.candidate == found.best.candidate)
    assert machine.looks <= len(among)


def test_what_cannot_pass_is_not_measured() -> None:
    machine = Machine(cores=4, serial=0.0, overhead=1.0, row=1.0, each_mib=100, noise=[1.0])
    found = search(candidates(batched=True, cores=4), machine, Limits(170 * MIB, 20))
    left_out = [one for one in found.tried if one.measured is None]
    assert left_out and all("already" in one.reason for one in left_out)
    assert found.best.candidate.instances == 1


def test_a_longer_look_may_refuse_what_a_short_one_let_pass() -> None:
    class Growing(Machine):
        def in_turns(self, wanted: Sequence[Candidate], turns: int) -> dict[Candidate, list[Measured]]:
            grown = super().in_turns(wanted, turns)
            for one, looks in grown.items():
                if one.max_batch > 4:
                    grown[one] = [Measured(one, look.rows_per_s, look.p99_ms, 900 * MIB) for look in looks]
            return grown

    machine = Growing(cores=1, serial=1.0, overhead=5.0, row=0.1, each_mib=10, noise=[1.0])
    found = search(candidates(batched=True, cores=1), machine, Limits(500 * MIB, None))
    assert found.best.candidate == Candidate(1, 1, 4)


def test_where_nothing_passes_the_nearest_is_told() -> None:
    machine = Machine(cores=2, serial=0.0, overhead=1.0, row=1.0, each_mib=100, noise=[1.0])
    with pytest.raises(PerformanceError, match=r"1 instance x 1 threads x batch 1, misses it: 162 MiB of 100 MiB"):
        search(candidates(batched=True, cores=2), machine, Limits(100 * MIB, None))
    with pytest.raises(UsageError, match="no setting to try"):
        search([], machine, Limits())


def test_candidates_use_no_more_threads_than_cores() -> None:
    assert candidates(batched=False, cores=1) == [Candidate(1, 1, 1)]
    found = candidates(batched=True, cores=6, max_batch=4)
    assert max(one.instances * one.threads for one in found) == 6
    assert {one.max_batch for one in found} == {1, 2, 4} and Candidate(6, 1, 4) in found


# -- the file ---------------------------------------------------------------------------------------------------


def test_settings_are_read_as_they_were_written(tmp_path) -> None:
    tuned = TunedSettings(Settings(instances=2, threads=1, max_batch=8, max_wait_ms=1.5), "f" * 64, {"p99_ms": 3.0})
    tuned.write(tmp_path / "s.json")
    assert read_settings(tmp_path / "s.json") == tuned
    assert tuned.settings.changed(max_batch=4, threads=None).max_batch == 4


DAMAGED = (
    *("", "{", "[]", '{"settings": {"instances": "two"}}', '{"settings": {"max_queue": 0}}'),
    *(
        '{"settings": {}, "schema_version": 2}',
        '{"settings": {"max_wait_ms": 1e999}}',
        '{"settings": {"instances": 1.5}}',
    ),
)


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_file_is_a_usage_error(tmp_path, text: str) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(UsageError):
        read_settings(tmp_path / "s.json")


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("512M", 512 * MIB), ("512MiB", 512 * MIB), ("1.5g", 1536 * MIB), ("64 kb", 65536)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size("--x", text) == size


@pytest.mark.parametrize("text", ["", "M", "-1M", "1X", "0", "nan", "1e9", "99999999T"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--x"):
        parse_size("--x", text)


@pytest.mark.nightly
def test_the_command_measures_real_servers_and_serve_takes_what_it_writes(artifacts, tmp_path, serve, capfd) -> None:
    path = tmp_path / "words.json"
    more = ("--max-memory", "2G", "--max-batch", "2", "--clients", "4", "--seconds", "0.2", "-o", str(path))
    assert main(["tune-serving", str(artifacts.words), *more, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["front"] and found["best"]["peak_memory_bytes"] > 10 * MIB and found["best"]["rows_per_s"] > 0
    chosen = read_settings(path).settings
    assert chosen.max_batch == found["best"]["max_batch"]
    with serve(artifacts.words, "--settings", path, "--max-queue", 7) as server:
        assert server.figures()['deploykit_queue_rows_bound{model="words",version="1"}'] == 7
        assert not server.plain, "the file is of this artifact: nothing is said"


def test_a_limit_that_nothing_meets_is_a_performance_error(artifacts, tmp_path, capfd) -> None:
    path = tmp_path / "none.json"
    more = ("--max-memory", "1M", "--max-batch", "1", "--seconds", "0.2", "-o", str(path))
    assert main(["tune-serving", str(artifacts.words), *more]) == 7
    assert "raise --max-memory" in capfd.readouterr().err and not path.exists()
