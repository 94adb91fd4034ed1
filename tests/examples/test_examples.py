"""Every example runs as its page says, in a process of its own; the slow ones at night (`lint` checks their types)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import pytest

import deploykit
from deploykit.contract.errors import DeviceError
from deploykit.contract.optional import Requirement
from deploykit.testing.loopback import ADDRESS, Loopback

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"

pytest.importorskip("torch", reason="the examples export models, which needs PyTorch")


def _run(*command: str, **changes: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env={**os.environ, **changes}, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_example_is_covered_here() -> None:
    covered = {
        "check_lineage.py",
        "ci",
        "board_by_name.py",
        "coreml_iphone.py",
        "digits_x86.py",
        "first_export.ipynb",  # executed where the documentation is built
        "geforce_rtx.py",
        "jetson_orin.py",
        "lightning_qat.py",
        "litert_android.py",
        "own_algorithm.py",
        "own_calibration.py",
        "prune_distil_export.py",
        "raspberry_pi_5.py",
        "release",
        "release_report.py",
        "serve.py",
        "third_party_target",
        "tune.py",
    }
    assert {path.name for path in EXAMPLES.iterdir() if path.name != "__pycache__"} == covered


def test_digits(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the images come with scikit-learn")
    printed = _run(str(EXAMPLES / "digits_x86.py"), "--output", str(tmp_path), "--epochs", "4", COLUMNS="160")
    artifact = deploykit.load(tmp_path / "digits-x86-cpu-int8")
    assert artifact.parity is not None
    assert artifact.parity.metric is not None
    assert artifact.parity.metric.artifact > 0.9
    assert artifact.parity.metric.drop <= 0.01
    assert f"{artifact.parity.metric.artifact:.2%}" in printed


def test_release(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="two of its targets are of ONNX Runtime, or need its packages")
    shutil.copytree(EXAMPLES / "release", tmp_path / "examples" / "release")
    file = str(tmp_path / "examples" / "release" / "release.toml")
    assert "8 passed; 8 computed now (pool)" in _run("-m", "deploykit", "release", file)
    assert "8 passed; 0 computed now (none)" in _run("-m", "deploykit", "release", file)
    assert (tmp_path / "out" / "release" / "junit.xml").is_file()


def test_serve(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    printed = _run(str(EXAMPLES / "serve.py"), "--output", str(tmp_path))
    assert "give the same: True" in printed and "are its own: True" in printed
    assert 'deploykit_requests_answered_total{model="net",version="1"} 3.0' in printed and "ended with 0" in printed


@pytest.mark.nightly
def test_tune(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the images come with scikit-learn")
    printed = _run(str(EXAMPLES / "tune.py"), "--output", str(tmp_path), "--epochs", "2", "--min-sqnr-db", "38")
    artifact = deploykit.load(tmp_path / "tuned")
    assert artifact.status == "verified" and artifact.recipe is not None and artifact.recipe.ladder
    assert artifact.parity is not None and artifact.parity.metric is not None
    assert artifact.parity.metric.fall is not None and artifact.parity.metric.drop <= 0.005
    assert deploykit.Recipe.read(tmp_path / "digits.toml") == artifact.recipe
    assert "makes the same bytes again" in printed and "with 95 % confidence" in printed


@pytest.mark.nightly
def test_own_calibration(tmp_path: Path) -> None:
    printed = _run(str(EXAMPLES / "own_calibration.py"), "--output", str(tmp_path))
    assert [line.split()[0] for line in printed.splitlines()] == ["minmax", "percentile", "mse"]
    assert all(deploykit.load(tmp_path / f"calibrated-{method}") for method in ("minmax", "percentile", "mse"))


@pytest.mark.nightly
def test_own_algorithm(tmp_path: Path) -> None:
    printed = _run(str(EXAMPLES / "own_algorithm.py"), "--output", str(tmp_path))
    plain, better, *_ = (float(line.split()[-2]) for line in printed.splitlines())
    assert better > plain - 0.2
    assert deploykit.load(tmp_path / "algorithm-jetson-orin-own-gptq").status == "needs device build"


@pytest.mark.nightly
def test_board_by_name(tmp_path: Path) -> None:
    try:
        board = Loopback(tmp_path / "sshd")
    except DeviceError as error:
        pytest.skip(error.message)
    path = f"{board.write_client(tmp_path / 'bin/ssh').parent}{os.pathsep}{os.environ['PATH']}"
    found = os.pathsep.join(filter(None, sys.path))
    own = {"PATH": path, "PYTHONPATH": found, "DEPLOYKIT_DEVICES": str(tmp_path / "devices.toml")}
    try:
        _run(
            "-m", "deploykit", "device", "add", "lab", ADDRESS, "--python", sys.executable, "--target", "x86-cpu", **own
        )
        output = ("--output", str(tmp_path / "out"))
        printed = _run(str(EXAMPLES / "board_by_name.py"), "lab", *output, "--sustained-s", "1", **own)
    finally:
        board.kill()
    assert "lab gives the same outputs" in printed and "a run takes" in printed
    profile = deploykit.load(tmp_path / "out/model").profile
    assert profile is not None and profile.sustained is not None


@pytest.mark.nightly
def test_geforce_rtx(tmp_path: Path) -> None:
    printed = _run(str(EXAMPLES / "geforce_rtx.py"), "--output", str(tmp_path))
    for name in ("rtx-vision", "rtx-language"):
        artifact = deploykit.load(tmp_path / name)
        assert f"{name}: {artifact.status}" in printed and artifact.achieved.as_asked_fraction > 0.9
        assert all(note in printed for note in artifact.achieved.notes)


def test_jetson_orin(tmp_path: Path) -> None:
    printed = _run(str(EXAMPLES / "jetson_orin.py"), "--output", str(tmp_path))
    artifact = deploykit.load(tmp_path / "jetson-orin")
    assert artifact.status in ("needs device build", "verified")
    assert artifact.status in printed
    assert "deploykit build jetson-orin" in printed or artifact.status == "verified"


@pytest.mark.nightly
def test_coreml_iphone(tmp_path: Path) -> None:
    if find_spec("coremltools") is None:
        pytest.skip("coremltools makes the package, and is not installed")
    printed = _run(str(EXAMPLES / "coreml_iphone.py"), "--output", str(tmp_path))
    artifact = deploykit.load(tmp_path / "iphone-15")
    assert artifact.achieved.macs_fraction("int8") > 0.9
    assert artifact.entry.parent.name == "model.mlpackage"
    assert "iOS 17" in printed and str(artifact.parity.evidence if artifact.parity else "") in printed


@pytest.mark.nightly
def test_release_report(tmp_path: Path) -> None:
    """What does not depend on what else this machine does: the page, and what grew for certain."""
    printed = _run(str(EXAMPLES / "release_report.py"), "--output", str(tmp_path))
    page = (tmp_path / "release-2" / "report.html").read_text(encoding="utf-8")
    assert "What changed since release-1" in page and "int8: size " in printed and "2 builds, " in printed


@pytest.mark.nightly
def test_raspberry_pi_5(tmp_path: Path) -> None:
    needed = ("aarch64-linux-gnu-gcc", "qemu-aarch64-static")
    if not Requirement("tvm", "apache-tvm").installed or not all(map(which, needed)):
        pytest.skip(f"needs TVM and {', '.join(needed)}")
    printed = _run(str(EXAMPLES / "raspberry_pi_5.py"), "--output", str(tmp_path))
    artifact = deploykit.load(tmp_path / "raspberry-pi-5")
    assert artifact.achieved.macs_fraction("int8") == 1.0
    assert artifact.parity is not None and artifact.parity.evidence == "emulator"
    assert "sdot" in printed and "emulator" in printed


@pytest.mark.nightly
def test_lightning_qat(tmp_path: Path) -> None:
    if find_spec("lightning") is None:
        pytest.skip("Lightning runs the training, and is not installed")
    printed = _run(str(EXAMPLES / "lightning_qat.py"), "--output", str(tmp_path), "--epochs", "1")
    artifact = deploykit.load(tmp_path / "x86-cpu")
    assert artifact.parity is not None and artifact.parity.chain[0].reference == "trained graph"
    said = f"{artifact.parity.sqnr_db:.1f} dB against the trained graph, verified"
    assert "".join(said.split()) in "".join(printed.split())


@pytest.mark.nightly
def test_prune_distil_export(tmp_path: Path) -> None:
    if find_spec("torch_pruning") is None:
        pytest.skip("torch-pruning finds the channels, and is not installed")
    printed = _run(str(EXAMPLES / "prune_distil_export.py"), "--output", str(tmp_path), "--epochs", "3")
    artifact = deploykit.load(tmp_path / "pruned-digits")
    assert artifact.status == "verified" and artifact.size_bytes < 60_000  # 598,290 bytes in float before
    figures = dict(line.split()[:2] for line in printed.splitlines() if line.startswith(("float ", "prune ", "train ")))
    assert float(figures["prune"]) < float(figures["train"]) > 0.9
    assert "accuracy of the artifact" in printed and "kept: 8: its channels are an output" in printed


@pytest.mark.nightly
def test_litert_android(tmp_path: Path) -> None:
    if find_spec("litert_torch") is None:
        pytest.skip("litert-torch makes the file, and is not installed")
    printed = _run(str(EXAMPLES / "litert_android.py"), "--output", str(tmp_path))
    artifact = deploykit.load(tmp_path / "android")
    assert artifact.achieved.macs_fraction("int8") == 1.0
    assert "int8[1, 64, 64, 3]" in printed and "int8[1, 10]" in printed


def test_third_party_target_installs_and_conforms(tmp_path: Path) -> None:
    source = EXAMPLES / "third_party_target"
    site = tmp_path / "site"
    _run("-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(site), str(source))
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    listed = _run("-m", "deploykit", "targets", PYTHONPATH=path, COLUMNS="160")
    assert "numpy-cpu" in listed
    suite = ("-m", "pytest", "-c", str(source / "pyproject.toml"), str(source / "tests"), "-p", "no:cacheprovider")
    printed = _run(*suite, PYTHONPATH=path)
    assert " passed" in printed
    assert " failed" not in printed
