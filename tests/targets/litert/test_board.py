"""The same file on an emulated arm64 board: its own Arm runtime under the exact CPU. Outputs, never latency."""

from __future__ import annotations

import shutil
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import deploykit
from deploykit.contract.decibels import SQNR_CAP_DB
from deploykit.contract.errors import DeviceError, MissingDependencyError
from deploykit.contract.precision import Evidence
from deploykit.contract.session import FunctionSession, Session
from deploykit.judge.parity import ParityReport, Tolerance
from deploykit.judge.verdict import Validation, judge
from deploykit.places.arm_root import ArmRoot, arm_root
from deploykit.testing import models
from deploykit.testing.conformance import batches
from deploykit_targets.litert.session import Interface, _from_file, _into_file

pytestmark = pytest.mark.skipif(find_spec("litert_torch") is None, reason="litert-torch is not installed")
CPUS = ("cortex-a76", "cortex-a72")  # Raspberry Pi 5 and 4: with and without dot products

# Runs on the board: no deploykit there, only the runtime and NumPy.
ON_BOARD = """
import platform, sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter
file, feeds, results, kernels = sys.argv[1:]
from ai_edge_litert.interpreter import OpResolverType
interpreter = Interpreter(file, num_threads=1, experimental_op_resolver_type=OpResolverType[kernels])
runner = interpreter.get_signature_runner()
with np.load(feeds) as arrays:
    samples = {}
    for key, array in arrays.items():
        samples.setdefault(key.split("/")[0], {})[key.split("/")[1]] = array
given = {f"{i}/{name}": array for i, feeds in samples.items() for name, array in runner(**feeds).items()}
np.savez(results, **given)
print(platform.machine())
"""


@pytest.fixture(scope="module")
def board() -> ArmRoot:
    if shutil.which("qemu-aarch64-static") is None:
        pytest.skip("needs the Debian package qemu-user-static")
    try:
        return arm_root([f"{name}=={metadata.version(name)}" for name in ("ai-edge-litert", "numpy")])
    except (DeviceError, MissingDependencyError) as error:
        pytest.skip(error.message)


def export(io: str, output: Path) -> deploykit.Artifact:
    module, example_inputs = models.squeeze_excite_cnn()
    return deploykit.export(
        module,
        "raspberry-pi-5:litert",
        "int8",
        example_inputs=example_inputs,
        calibration=batches(example_inputs, 8),
        options={"io": io},
        output=output,
        profile=False,
        progress=False,
    )


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> deploykit.Artifact:
    """Integers from end to end."""
    return export("int8", tmp_path_factory.mktemp("board") / "artifact")


def on_board(board: ArmRoot, cpu: str, artifact: deploykit.Artifact, folder: Path, kernels: str = "AUTO") -> Session:
    """The golden inputs run on the board, as a session that gives what came back."""
    golden, file = artifact.golden().inputs, artifact.manifest.recorded(Interface, "file")
    into = {spec.name: _into_file(spec, entry) for spec, entry in zip(artifact.inputs, file.inputs, strict=True)}
    back = {spec.name: _from_file(spec, entry) for spec, entry in zip(artifact.outputs, file.outputs, strict=True)}
    feeds = {f"{i}/{name}": into[name](array) for i, sample in enumerate(golden) for name, array in sample.items()}
    np.savez(folder / "feeds.npz", **feeds)  # type: ignore[arg-type]
    (folder / "run.py").write_text(ON_BOARD, encoding="utf-8")
    done = board.run_python(cpu, folder / "run.py", artifact.entry, folder / "feeds.npz", folder / "out.npz", kernels)
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["aarch64"]), done.stderr
    with np.load(folder / "out.npz") as arrays:
        given = [{name: back[name](arrays[f"{i}/{name}"]) for name in back} for i in range(len(golden))]
    remaining = iter(given)
    return FunctionSession(lambda _: next(remaining), artifact.inputs, artifact.outputs)


def judged(board_session: Session, artifact: deploykit.Artifact, tolerance: Tolerance) -> ParityReport:
    """Board against x86, on the golden data."""
    golden = artifact.golden()
    recorded = iter(golden.outputs)
    here = FunctionSession(lambda _: next(recorded), artifact.inputs, artifact.outputs)
    return judge(board_session, Evidence.EMULATOR, Validation(here, golden.inputs, "golden data", tolerance))


@pytest.mark.parametrize("cpu", CPUS)
def test_int8_outputs_are_those_of_x86_bit_by_bit(
    board: ArmRoot, cpu: str, artifact: deploykit.Artifact, tmp_path: Path
) -> None:
    """XNNPACK's integer kernels are exact: dot products or not, the sums are the same."""
    report = judged(on_board(board, cpu, artifact, tmp_path), artifact, Tolerance(min_sqnr_db=SQNR_CAP_DB))
    assert report.passed and report.max_abs == 0.0
    assert report.evidence is Evidence.EMULATOR


@pytest.mark.parametrize("kernels", ["BUILTIN_WITHOUT_DEFAULT_DELEGATES", "BUILTIN_REF"])
def test_other_kernels_of_the_board_agree_up_to_rounding(
    board: ArmRoot, artifact: deploykit.Artifact, tmp_path: Path, kernels: str
) -> None:
    session = on_board(board, "cortex-a76", artifact, tmp_path, kernels)
    assert judged(session, artifact, Tolerance(min_sqnr_db=30.0)).passed


@pytest.mark.nightly
def test_a_layer_that_rounds_at_run_time_differs_by_a_step_at_most(board: ArmRoot, tmp_path: Path) -> None:
    """The range of its input is found in float32, which two CPUs may round differently."""
    artifact = export("float", tmp_path / "a")
    assert judged(on_board(board, "cortex-a72", artifact, tmp_path), artifact, Tolerance(min_sqnr_db=40.0)).passed
