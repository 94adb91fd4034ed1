"""What an artifact needs, and what a machine that lacks it is told."""

from __future__ import annotations

import dataclasses
import json

import pytest

from deploykit.artifact.manifest import PendingBuild
from deploykit.contract.errors import DeviceError, MissingDependencyError
from deploykit.contract.host import Host
from deploykit.contract.precision import Evidence
from deploykit.contract.requirements import BestWith, Requirements, check, fits, lacking

HASWELL = Host("x86_64", ("sse4_2", "avx2", "fma"), 4, "Linux")
ICE_LAKE = Host("x86_64", ("sse4_2", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni"), 4, "Linux")
UNKNOWN = Host("AMD64", (), 4, "Windows")
PI_5 = Host("aarch64", ("asimd", "asimdhp", "asimddp"), 4, "Linux")
EXACT = BestWith("vnni", "sums are exact, and slower", same_arithmetic=True, instead="x86-cpu-avx2")
IN_FLOAT = BestWith("vnni", "it is computed in float32", same_arithmetic=False)


def test_what_has_it_all_is_fine() -> None:
    needs = Requirements(arch=("x86-64",), os=("Linux",), isa=("avx512_vnni",), best_with=(EXACT,))
    found = check(needs, ICE_LAKE)
    assert found.ok and found.native and not found.adapted and found.verdict == "yes"


@pytest.mark.parametrize(
    ("needs", "says", "then"),
    [
        (Requirements(arch=("arm64",)), "code for arm64, and this machine is x86-64", "run it on arm64"),
        (Requirements(os=("Windows",)), "needs Windows, and this is Linux", "export it here"),
        (
            Requirements(isa=("avx2", "avx512_vnni")),
            "needs avx512_vnni, which this CPU lacks",
            "export it on this machine",
        ),
        (Requirements(isa=("amx_int8",), instead="x86-cpu"), "needs amx_int8", 'target="x86-cpu"'),
        (Requirements(packages={"numpy": ">=99.1"}), "needs numpy>=99.1", 'pip install "numpy>=99.1"'),
        (Requirements(memory_bytes=2**60), "GiB of memory", "smaller precision"),
    ],
)
def test_what_is_missing_is_named_with_the_next_step(needs: Requirements, says: str, then: str) -> None:
    found = check(needs, HASWELL)
    assert not found.ok and found.verdict.startswith("no: ")
    assert says in found.missing[0].what and then in found.missing[0].next


def test_what_can_be_done_without_is_said() -> None:
    exact = check(Requirements(best_with=(EXACT,)), HASWELL)
    assert exact.ok and exact.native
    assert exact.adapted == (
        'this CPU has no vnni: sums are exact, and slower (made for such CPUs: target="x86-cpu-avx2")',
    )
    assert not check(Requirements(best_with=(IN_FLOAT,)), HASWELL).native
    assert check(Requirements(best_with=(IN_FLOAT,)), PI_5).native, "VNNI is an affair of x86"


def test_an_unknown_cpu_takes_the_form_that_is_right_and_is_not_refused() -> None:
    found = check(Requirements(isa=("avx512_vnni",), best_with=(EXACT,)), UNKNOWN)
    assert found.ok and found.adapted[0].startswith("nobody can tell")
    assert "could not be read" in found.notes[0]


def test_a_package_that_is_absent_is_asked_for_elsewhere() -> None:
    assert check(Requirements(packages={"no-such-distribution-of-ours": ">=1"}), HASWELL).ok


@pytest.mark.parametrize(
    ("version", "specifier", "allowed"),
    [
        ("1.31.1", ">=1.20", True),
        ("1.9", ">=1.20", False),
        ("2", ">=2.0.0", True),
        ("2.13.0+cpu", "==2.13.*", True),
        ("2.14.0", "==2.13.*", False),
        ("10.3.0.26", "==10.3.0.26", True),
        ("10.3.0.27", "==10.3.0.26", False),
        ("2026.4.1-22982-release", ">=2024.6", True),
        ("anything", "", True),
    ],
)
def test_versions(version: str, specifier: str, allowed: bool) -> None:
    assert fits(version, specifier) is allowed


def test_a_specifier_of_another_form_is_a_defect() -> None:
    with pytest.raises(ValueError, match="~=2"):
        fits("2.1", "~=2")


def test_only_instruction_sets_are_features_that_can_be_lacking() -> None:
    assert lacking(("avx2", "vnni", "dla"), HASWELL) == ("vnni",)
    assert lacking(("vnni",), UNKNOWN) == ()


def test_open_refuses_what_is_missing(toy, tmp_path) -> None:
    needs = Requirements(arch=("mars64",))
    artifact = toy.write_artifact(tmp_path / "a", requirements=needs)
    assert artifact.requirements == needs and not artifact.preflight().ok
    with pytest.raises(DeviceError, match="cannot run here: it is code for mars64") as caught:
        artifact.open()
    assert "run it on mars64" in str(caught.value.hint)


def test_open_refuses_a_package_that_is_too_old(toy, tmp_path) -> None:
    artifact = toy.write_artifact(tmp_path / "a", requirements=Requirements(packages={"numpy": ">=99.1"}))
    with pytest.raises(MissingDependencyError, match="another version of numpy is needed to open a") as caught:
        artifact.open()
    assert caught.value.command == 'pip install "numpy>=99.1"'


def test_an_artifact_without_requirements_loads_and_opens(toy, tmp_path) -> None:
    """Those that older versions wrote have no such field."""
    artifact = toy.write_artifact(tmp_path / "old")
    document = json.loads((artifact.path / "manifest.json").read_text())
    assert document.pop("requirements") is None
    (artifact.path / "manifest.json").write_text(json.dumps(document))
    again = toy.load(artifact.path)
    assert again.manifest.requirements is None and again.preflight().ok
    again.open().close()


def test_preflight_says_what_is_to_be_built(toy, tmp_path) -> None:
    artifact = toy.write_artifact(tmp_path / "a", build=PendingBuild("deploykit build .", "no GPU here"))
    assert artifact.preflight().missing[0].next == f"deploykit build {artifact.path}"


def test_summary_has_requirements_and_verdict(toy, tmp_path) -> None:
    needs = Requirements(isa=("avx2",), packages={"toy": ">=1.0"})
    summary = toy.write_artifact(tmp_path / "a", requirements=needs).summary()
    assert summary["requirements"] == json.loads(json.dumps(dataclasses.asdict(needs)))
    assert summary["preflight"]["ok"] is toy.load(tmp_path / "a").preflight().ok
    assert summary["preflight"]["host"]["arch"]


def test_evidence_is_of_the_device_only_where_its_features_are(toy, tmp_path, monkeypatch) -> None:
    target = toy.ToyTarget()
    board = dataclasses.replace(toy.BOARD, arch="x86-64", features=("avx2", "vnni"))
    own = dataclasses.replace(target.capabilities(), devices={board.name: board})
    monkeypatch.setattr(target, "capabilities", lambda: own)
    artifact = toy.write_artifact(tmp_path / "a")
    for host, evidence in ((ICE_LAKE, Evidence.DEVICE), (HASWELL, Evidence.REFERENCE), (PI_5, Evidence.REFERENCE)):
        monkeypatch.setattr(target, "host", lambda host=host: host)
        assert target.evidence(artifact) is evidence, host
    monkeypatch.setattr(target, "host", lambda: HASWELL)
    assert target.notes_on_evidence(artifact) == (
        "evidence is not `device`: toy-board has vnni, this machine does not",
    )
