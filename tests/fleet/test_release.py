"""Releases in the process pool: what is computed once, what fails, what is killed, and what is told of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest

import deploykit
from deploykit.contract.errors import ArtifactError, MissingDependencyError, UsageError
from deploykit_fleet import outcome
from deploykit_fleet import release as release_room

pytest.importorskip("torch", reason="cells are exported")
pytest.importorskip("onnxruntime", reason="the cells are of the target x86-cpu")


def run(project, *, progress=False, **options):
    return deploykit.release(project.file, engine="pool", jobs=2, progress=progress, **options)


def _ours(project) -> list[int]:
    """Workers of a release of this project that are alive."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
            here = os.readlink(path.parent / "cwd")
        except OSError:
            continue
        if b"deploykit_fleet" in words and here == str(project.folder):
            found.append(int(path.parent.name))
    return found


def test_a_matrix_is_computed_once_from_one_capture_a_model(project):
    told = []
    first = run(project, progress=told.append)
    assert {event.step for event in told} == {"exporting cells"}
    assert [(event.state, event.done, event.total) for event in told] == [
        ("begins", None, None),
        ("advances", 0, 4),
        ("advances", 2, 4),
        ("advances", 4, 4),
        ("advances", 4, 4),
        ("ends", None, None),
    ]
    assert [(cell.name, cell.status) for cell in first.cells] == [
        ("one/x86-cpu/fp32", "passed"),
        ("one/x86-cpu/int8", "passed"),
        ("two/x86-cpu/fp32", "passed"),
        ("two/x86-cpu/int8", "passed"),
    ]
    assert sorted(project.calls) == ["one", "two"] and first.engine == "pool" and first.exit_code == 0
    for cell in first.cells:
        artifact = deploykit.load(project.store / cell.artifact)
        assert artifact.fingerprint == cell.fingerprint and artifact.verify() and artifact.precision == cell.precision
        assert next(gate for gate in cell.gates if gate.name == "min_sqnr_db").passed
    assert outcome.read(project.store) == first
    assert not list((project.store / "work").iterdir())

    again = run(project)
    assert all(cell.cached for cell in again.cells) and again.engine == "none" and len(project.calls) == 2
    assert [cell.fingerprint for cell in again.cells] == [cell.fingerprint for cell in first.cells]
    assert len(list((project.store / "releases").iterdir())) == 1, "a run with nothing to do is no further release"

    words = "export nets:one --target x86-cpu --precision int8 --calibration cal.npz --no-profile --output plain"
    subprocess.run([sys.executable, "-m", "deploykit", *words.split()], cwd=project.folder, check=True, stdout=-3)
    assert deploykit.load(project.folder / "plain").fingerprint == first.cells[1].fingerprint


def test_only_what_a_change_touches_is_computed_again_and_changes_are_told(project):
    first = run(project)
    old = next((project.store / "releases").iterdir())
    text = project.file.read_text().replace('precisions = ["fp32", "int8"]', 'precisions = ["int8", "int8-dynamic"]')
    project.file.write_text(text)
    second = run(project, against=old)
    assert [cell.cached for cell in second.cells] == [True, False, True, False]
    assert second.cells[0].fingerprint == first.cells[1].fingerprint
    from deploykit_fleet.against import changes

    told = sorted((change.cell, change.what) for change in changes(outcome.read(old), second))
    expected = [("x86-cpu/fp32", "removed"), ("x86-cpu/int8-dynamic", "added")]
    assert told == [(f"{name}/{cell}", what) for name in ("one", "two") for cell, what in expected]
    assert len(list((project.store / "releases").iterdir())) == 2


def test_a_resumed_cell_is_the_same_as_one_of_a_whole_run(project):
    whole = run(project)
    lost = whole.cells[1]
    (project.store / "cells" / f"{lost.key}.json").unlink()
    found = run(project)
    assert [cell.cached for cell in found.cells] == [True, False, True, True]
    assert found.cells[1].fingerprint == lost.fingerprint


def test_a_missed_gate_is_a_finished_cell_with_its_candidate_and_layers(project):
    cells = """
    [[cell]]
    models = ["one"]
    targets = ["x86-cpu"]
    precisions = ["int8"]
    gates = { min_sqnr_db = 150.0 }
    """
    project.write(cells)
    (cell,) = run(project).cells
    assert (cell.status, cell.failure.kind, cell.failure.exit_code) == ("failed", "ParityError", 6)
    assert deploykit.load(project.store / cell.artifact).status == "failed"
    gate = next(gate for gate in cell.gates if gate.name == "min_sqnr_db")
    assert not gate.passed and gate.asked == 150.0 and 20.0 < gate.value < 150.0 and cell.failure.layers
    again = run(project)
    assert again.cells[0].cached and again.exit_code == 6 and project.calls == ["one"]
    case = Xml.parse(project.store / "junit.xml").find(".//testcase")
    assert case.get("name") == "x86-cpu/int8" and case.find("failure").get("type") == "ParityError"
    assert "missed min_sqnr_db: asked 150" in case.find("failure").text and "layer " in case.find("failure").text


def test_the_metric_is_a_gate_with_its_interval(project):
    models = """
    [model.one]
    factory = "nets:one"
    calibration = "cal.npz"
    evaluate = "nets:top1"
    [model.two]
    factory = "nets:two"
    evaluate = "nets:bad_metric"
    """
    cells = """
    [[cell]]
    models = ["one", "two"]
    targets = ["x86-cpu"]
    precisions = ["fp32"]
    gates = { max_drop = 0.3 }
    """
    project.write(cells, models)
    found = run(project)
    good, bad = found.cells
    assert good.status == "passed" and good.metric.interval is not None and good.metric.samples == 8
    assert (bad.metric.value, bad.metric.reference, bad.metric.interval) == (0.5, 1.0, None)
    assert bad.status == "failed" and found.exit_code == 6
    assert next(gate for gate in bad.gates if gate.name == "max_drop").value == 0.5


def test_one_model_that_fails_takes_no_other_with_it_and_is_tried_again_next_time(project):
    models = (
        '[model.bad]\nfactory = "nets:refuses"\n[model.out]\nfactory = "nets:exits"\n[model.one]\nfactory = "nets:one"'
    )
    cells = '[[cell]]\nmodels = ["bad", "out", "one"]\ntargets = ["x86-cpu"]\nprecisions = ["fp32"]\n'
    project.write(cells, models, "profile = false\nretries = 0")
    found = run(project)
    bad, out, one = found.cells
    assert (bad.status, bad.failure.kind, bad.artifact) == ("failed", "UsageError", None)
    assert "no weights today" in bad.failure.message and found.exit_code == 2
    assert out.status == "failed" and out.failure.kind == "SystemExit" and one.status == "passed"
    (folder,) = (project.store / "releases").iterdir()
    assert "no weights today" in (folder / "logs" / "bad.txt").read_text()
    suite = Xml.parse(folder / "junit.xml").find("testsuite")
    assert (suite.get("tests"), suite.get("errors"), suite.get("failures")) == ("3", "2", "0")
    text = (project.folder / "nets.py").read_text()
    (project.folder / "nets.py").write_text(text.replace('raise ValueError("no weights today")', "return one()"))
    assert run(project).cells[0].status == "passed"


def test_code_of_the_user_that_asks_ends_or_dies_of_an_unnamed_signal_is_told(project):
    odd = (
        'def asks():\n    return input("which? ")\n\n\ndef leaves():\n    os._exit(7)\n\n\n'
        "def dies():\n    os.kill(os.getpid(), 50)\n"
    )
    (project.folder / "odd.py").write_text(f"import os\n\n\n{odd}")
    names = ("asks", "leaves", "dies")
    models = "".join(f'[model.{name}]\nfactory = "odd:{name}"\n' for name in names)
    cells = '[[cell]]\nmodels = ["asks", "leaves", "dies"]\ntargets = ["x86-cpu"]\nprecisions = ["fp32"]\n'
    project.write(cells, models, "profile = false\nretries = 0")
    asked, left, died = (cell.failure for cell in run(project).cells)
    assert "EOF" in asked.message and asked.kind != "Crashed"
    assert left.kind == died.kind == "Crashed" and "died once" in left.message and "code 7" in left.message
    assert "signal 50" in died.message


def test_a_process_that_keeps_dying_is_given_up_with_its_last_words(project):
    project.write(
        '[[cell]]\nmodels = ["a"]\ntargets = ["x86-cpu"]\nprecisions = ["fp32", "int8-dynamic"]\n',
        '[model.a]\nfactory = "nets:dies"\n',
        "profile = false\nretries = 1",
    )
    found = run(project)
    assert [cell.failure.kind for cell in found.cells] == ["Crashed", "Crashed"] and found.exit_code == 4
    assert "died 2 times while a was captured" in found.cells[0].failure.message
    assert found.cells[0].failure.hint.startswith("deploykit export nets:dies")


def test_a_model_whose_sources_do_not_tell_what_it_is_is_refused(project):
    (project.folder / "secret.txt").write_text("0")
    text = (project.folder / "nets.py").read_text()
    secret = 'torch.manual_seed(seed + int(Path(__file__).with_name("secret.txt").read_text()))'
    (project.folder / "nets.py").write_text(text.replace("torch.manual_seed(seed)", secret))
    cells = '[[cell]]\nmodels = ["one"]\ntargets = ["x86-cpu"]\nprecisions = ["fp32"{}]\n'
    project.write(cells.format(""))
    assert run(project).exit_code == 0
    (project.folder / "secret.txt").write_text("1")
    project.write(cells.format(', "int8"'))
    kept, refused = run(project).cells
    assert kept.cached and refused.failure.kind == "UsageError"
    assert "another one than finished cells" in refused.failure.message and "files = [" in refused.failure.hint
    models = '[model.one]\nfactory = "nets:one"\ncalibration = "cal.npz"\nfiles = ["secret.txt"]\n'
    project.write(cells.format(', "int8"'), models)
    assert [(cell.status, cell.cached) for cell in run(project).cells] == [("passed", False)] * 2


@pytest.mark.parametrize(
    "name", ["nets.py", *(pytest.param(n, marks=pytest.mark.nightly) for n in ("settings.py", "cal.npz"))]
)
def test_what_changes_between_plan_and_work_is_not_made_under_the_old_key(project, monkeypatch, name):
    path = project.folder / name
    before = path.read_bytes()
    cells = '[[cell]]\nmodels = ["one"]\ntargets = ["x86-cpu"]\nprecisions = ["fp32"]\n'
    project.write(cells)
    planned = release_room.plan

    def change_after(file):
        found = planned(file)
        path.write_bytes(before + (b"\n" if name.endswith(".py") else b"more"))
        return found

    monkeypatch.setattr(release_room, "plan", change_after)
    (refused,) = run(project).cells
    assert refused.failure.kind == "UsageError" and "changed since the release was planned" in refused.failure.message
    assert name.removesuffix(".py") in refused.failure.message or "calibration data" in refused.failure.message
    monkeypatch.setattr(release_room, "plan", planned)
    path.write_bytes(before)
    (made,) = run(project).cells
    assert made.status == "passed" and not made.cached


def test_what_cannot_be_made_is_skipped_only_where_the_file_allows_it(project):
    cells = '[[cell]]\nmodels = ["one"]\ntargets = ["x86-cpu"]\nprecisions = ["fp8", "fp32"]\n'
    project.write(cells)
    assert run(project).exit_code == 3
    project.write(cells + 'allow_skip = ["unsupported"]\n')
    found = run(project)
    assert [cell.status for cell in found.cells] == ["skipped", "passed"] and found.exit_code == 0
    assert "fp8" in found.cells[0].reason
    assert Xml.parse(project.store / "junit.xml").find(".//skipped") is not None


def test_profiles_are_measured_after_the_exports_beside_the_float_build(project):
    project.write('[[cell]]\nmodels = ["one"]\ntargets = ["x86-cpu"]\nprecisions = ["fp32", "int8"]\n', settings="")
    found = run(project)
    fp32, int8 = (deploykit.load(project.store / cell.artifact) for cell in found.cells)
    assert fp32.profile.baseline == "" and int8.profile.baseline == "fp32 artifact"
    stamp = (int8.path / "profile.json").stat().st_mtime_ns
    run(project)
    assert (int8.path / "profile.json").stat().st_mtime_ns == stamp


def test_a_speed_gate_is_measured_with_its_float_build(project):
    cells = '[[cell]]\nmodels = ["one"]\ntargets = ["x86-cpu"]\nprecisions = ["int8"]\ngates = { min_speedup = 1e-3 }\n'
    project.write(cells)
    (cell,) = run(project).cells
    gate = next(gate for gate in cell.gates if gate.name == "min_speedup")
    artifact = deploykit.load(project.store / cell.artifact)
    assert artifact.profile is not None and (gate.value is None or gate.value == artifact.profile.worth_it)
    assert cell.status == ("passed" if gate.passed else "failed")


@pytest.mark.parametrize(
    "moment", [*(pytest.param(moment, marks=pytest.mark.nightly) for moment in (0.3, 1.5, 2.5)), 5.0]
)
def test_a_release_that_is_killed_leaves_no_process_and_no_half_artifact_and_goes_on(project, moment):
    command = [sys.executable, "-m", "deploykit", "release", str(project.file), "--engine", "pool", "--jobs", "2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=project.folder) as process:
        time.sleep(moment)
        process.kill()
    end = time.monotonic() + 10.0
    while (left := _ours(project)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not left
    objects = project.store / "objects"
    there = [deploykit.load(path).fingerprint for path in sorted(objects.iterdir())] if objects.is_dir() else []
    assert there == ([path.name for path in sorted(objects.iterdir())] if objects.is_dir() else [])
    finished = {path.stem: path.stat().st_mtime_ns for path in (project.store / "cells").glob("*.json")}
    found = run(project)
    assert found.exit_code == 0 and {cell.key for cell in found.cells if cell.cached} == set(finished)
    assert {key: (project.store / "cells" / f"{key}.json").stat().st_mtime_ns for key in finished} == finished
    assert not list((project.store / "work").iterdir())


def test_a_worker_that_is_killed_is_started_again_and_finished_cells_stay(project):
    command = [sys.executable, "-m", "deploykit", "release", str(project.file), "--engine", "sequential", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=project.folder) as process:
        end = time.monotonic() + 60.0
        while not list((project.store / "cells").glob("*.json")) and time.monotonic() < end:
            time.sleep(0.01)
        for pid in _ours(project):
            if pid != process.pid:
                os.kill(pid, signal.SIGKILL)
        document = json.loads(process.communicate()[0])
    assert process.returncode == 0 and [cell["status"] for cell in document["cells"]] == ["passed"] * 4


def test_a_cluster_that_is_named_counts_for_more_than_the_engine_of_the_file(project, monkeypatch):
    monkeypatch.setattr(release_room, "has_ray", lambda: False)
    project.write(settings='engine = "pool"')
    with pytest.raises(MissingDependencyError, match="compute a release on a cluster"):
        deploykit.release(project.file, cluster="a:1")


def test_an_older_release_that_is_not_there_is_refused_before_anything_is_computed(project):
    with pytest.raises(ArtifactError, match="no release"):
        run(project, against=project.folder / "absent")
    with pytest.raises(UsageError, match="jobs is 0"):
        deploykit.release(project.file, jobs=0)
    with pytest.raises(UsageError, match="unknown engine"):
        deploykit.release(project.file, engine="slurm")
    with pytest.raises(UsageError, match="needs the engine ray"):
        deploykit.release(project.file, engine="pool", cluster="a:1")
    assert not project.store.exists()
