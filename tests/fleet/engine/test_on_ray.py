"""Releases on a Ray of their own: the same fingerprints, on loopback alone, and nothing left of it, whatever is killed.

Each runs in a network namespace that has nothing but loopback.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import deploykit
from deploykit.contract.errors import MissingDependencyError
from deploykit_fleet import outcome
from deploykit_fleet.store import Store

pytest.importorskip("torch", reason="cells are exported")
pytest.importorskip("onnxruntime", reason="the cells are of the target x86-cpu")
INSIDE = Path(__file__).with_name("inside.py")
NAMESPACE = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


def has_namespaces() -> bool:
    try:
        return not subprocess.run([*NAMESPACE, "true"], check=False, capture_output=True).returncode
    except OSError:
        return False


needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
needs_namespaces = pytest.mark.skipif(not has_namespaces(), reason="no network namespaces here")


def on_ray(project, kill="", after_s=0.0, seed=0):
    words = ["release", str(project.file), "--engine", "ray", "--jobs", "2"]
    told = {"command": [sys.executable, "-m", "deploykit", *words], "kill": kill, "after_s": after_s, "seed": seed}
    done = subprocess.run(
        [*NAMESPACE, sys.executable, str(INSIDE), json.dumps(told)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=project.folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["left"], found["left"]
    assert set(found["addresses"]) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    return found


def elsewhere(project, tmp_path_factory) -> dict[str, str]:
    """Fingerprints of the same release, one process after another, in a store of its own."""
    text = project.file.read_text()
    project.file.write_text(text.replace("[release]\n", f'[release]\nstore = "{tmp_path_factory.mktemp("other")}/s"\n'))
    found = deploykit.release(project.file, engine="sequential", progress=False)
    project.file.write_text(text)
    assert found.exit_code == 0
    return {cell.name: cell.fingerprint for cell in found.cells}


@needs_ray
@needs_namespaces
def test_a_release_on_ray_is_the_same_on_loopback_alone_and_leaves_nothing(project, tmp_path_factory):
    done = on_ray(project)
    assert done["code"] == 0, done
    found = outcome.read(project.store)
    assert found.engine == "ray" and sorted(project.calls) == ["one", "two"]
    expected = elsewhere(project, tmp_path_factory)
    assert {cell.name: cell.fingerprint for cell in found.cells} == expected


@needs_ray
@needs_namespaces
@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(int(os.environ.get("DEPLOYKIT_KILLS", "1"))))
@pytest.mark.parametrize("kill", ["driver", "host", "worker", "raylet", "gcs", "task", "agent"])
def test_whatever_is_killed_nothing_is_half_lost_or_left(project, tmp_path_factory, kill, seed):
    expected = elsewhere(project, tmp_path_factory)
    store = Store(project.store)
    first = on_ray(project, kill, after_s=1.0 + 3.0 * seed, seed=seed)
    assert first["killed"] == kill or first["code"] == 0
    for path in sorted(store.objects.glob("*")):  # a kill may come before the store is there
        assert deploykit.load(path).fingerprint == path.name
    finished = {key: (store.cells / f"{key}.json").stat().st_mtime_ns for key in store.recorded()}
    second = on_ray(project)
    assert (
        second["code"] == 0 and {key: (store.cells / f"{key}.json").stat().st_mtime_ns for key in finished} == finished
    )
    assert {cell.name: cell.fingerprint for cell in outcome.read(project.store).cells} == expected


def test_ray_is_asked_for_by_its_extra_where_it_is_not_installed(project, monkeypatch):
    monkeypatch.setattr("deploykit_fleet.release.has_ray", lambda: False)
    for options in ({"engine": "ray"}, {"cluster": "10.0.0.1:6379"}):
        with pytest.raises(MissingDependencyError, match=r"\[release\]"):
            deploykit.release(project.file, **options)
    assert not project.store.exists()


def test_where_ray_was_not_asked_for_by_name_and_cannot_start_a_pool_goes_on_and_says_so(project, monkeypatch, caplog):
    from deploykit.contract.errors import DeviceError
    from deploykit_fleet.engine import on_ray as engine

    def refuse(*_, **__):
        raise DeviceError("Ray ended 3 times")
        yield

    monkeypatch.setattr("deploykit_fleet.release.has_ray", lambda: True)
    monkeypatch.setattr(engine, "run", refuse)
    found = deploykit.release(project.file, jobs=2, progress=False)
    assert found.exit_code == 0 and found.engine == "pool" and "going on in a pool of processes" in caplog.text
    project.write(settings='profile = false\nengine = "ray"\nthreads = 2')
    with pytest.raises(DeviceError, match="Ray ended"):
        deploykit.release(project.file, jobs=2, progress=False)
