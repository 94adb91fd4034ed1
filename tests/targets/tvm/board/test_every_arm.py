"""One artifact for every 64-bit Arm CPU: which kernels run is decided by Linux's HWCAP where it is opened."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.contract.host import Host
from deploykit.contract.requirements import check
from deploykit.places import Qemu
from deploykit_targets.tvm import TvmTarget
from deploykit_targets.tvm.build import CONSTANTS, recorded
from deploykit_targets.tvm.processor import ARM_ISAS

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")
if not all(map(shutil.which, ("aarch64-linux-gnu-gcc", "qemu-aarch64-static"))):
    pytest.skip("needs the Debian packages gcc-aarch64-linux-gnu and qemu-user-static", allow_module_level=True)

NAMES = [name for name, _ in ARM_ISAS]
CPUS = {"max": "i8mm", "cortex-a76": "sdot", "cortex-a72": "neon"}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, export_of_variants: Callable[[str, Path], Any]) -> Any:
    """Stretches that plain NEON fills and does not, small and large sums, a depthwise layer, a tail of columns."""
    return export_of_variants("arm-cpu:tvm", tmp_path_factory.mktemp("arm") / "model")


def test_it_has_all_variants_and_their_sizes(artifact: Any) -> None:
    library = recorded(artifact)
    assert [variant.isa for variant in library.variants] == NAMES
    assert library.isa == "neon", "what it needs is what its plainest variant needs"
    assert {name: v.needs for name, v in zip(NAMES, library.variants, strict=True)}["neon"] == ("neon",)
    sizes = [variant.constant_bytes for variant in library.variants]
    assert max(sizes) < library.runtime_files[CONSTANTS] < sum(sizes), "dot products and plain NEON share weights"
    assert all(variant.object_bytes > 1000 for variant in library.variants)


def test_all_variants_were_run_and_agree(artifact: Any) -> None:
    assert all(variant.sqnr_db is not None and variant.sqnr_db > 40 for variant in recorded(artifact).variants)
    assert artifact.parity.evidence == "emulator" and artifact.parity.passed


@pytest.mark.parametrize("cpu", list(CPUS))
def test_a_cpu_takes_its_best(artifact: Any, cpu: str) -> None:
    with TvmTarget().at(Qemu(cpu)).open(artifact, threads=2) as session:
        assert session.variant == CPUS[cpu]  # type: ignore[attr-defined]
        found = session.run(artifact.golden().inputs[0])
    for name, wanted in artifact.golden().outputs[0].items():
        np.testing.assert_allclose(found[name], wanted, atol=0.02 * np.abs(wanted).max())


def test_every_64_bit_arm_cpu_is_enough(artifact: Any) -> None:
    assert check(artifact.manifest.requirements, Host("aarch64", ("asimd",), 2, "Linux")).ok
