"""One artifact for every x86 CPU with AVX2: which kernels run is decided by CPUID where it is opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")

from old_cpu import opened_without_vnni

from deploykit.contract.errors import DeviceError
from deploykit.contract.host import Host, this_host
from deploykit_targets.tvm.build import CONSTANTS, recorded
from deploykit_targets.tvm.native import Model
from deploykit_targets.tvm.processor import X86_ISAS, tiles_granted
from deploykit_targets.tvm.session import NativeSession

NAMES = [name for name, _ in X86_ISAS]
pytestmark = pytest.mark.skipif(not this_host().has("avx2"), reason="this is no x86 CPU with AVX2")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, export_of_variants: Callable[[str, Path], Any]) -> Any:
    """Stretches that AMX fills and does not, a depthwise layer, columns that 8 and 16 divide and do not."""
    return export_of_variants("x86-cpu:tvm", tmp_path_factory.mktemp("x86") / "model")


def test_it_has_all_variants_and_their_sizes(artifact: Any) -> None:
    library = recorded(artifact)
    assert [variant.isa for variant in library.variants] == NAMES
    assert library.isa == "avx2", "what it needs is what its plainest variant needs"
    sizes = [variant.constant_bytes for variant in library.variants]
    assert max(sizes) < library.runtime_files[CONSTANTS] < 1.3 * max(sizes), "weights are shared, not repeated"
    assert all(variant.object_bytes > 1000 for variant in library.variants)


def test_this_machine_takes_its_best(artifact: Any) -> None:
    usable = [name for name, features in X86_ISAS if all(map(this_host().has, features))]
    best = next(name for name in usable if name != "amx_int8" or tiles_granted())
    with NativeSession(artifact, 1) as session:
        assert session.variant == best


@pytest.mark.parametrize("name", NAMES)
def test_variants_agree(artifact: Any, name: str) -> None:
    (facts,) = [variant for variant in recorded(artifact).variants if variant.isa == name]
    if facts.sqnr_db is None:
        with pytest.raises(DeviceError, match="this CPU has no"):
            Model(artifact.path, 1, NAMES, variant=name)
        return
    assert facts.sqnr_db > 30  # a rounding here and there
    with NativeSession(artifact, 2, variant=name) as session:
        found = session.run(artifact.golden().inputs[0])
    _check(artifact, found)


def test_a_cpu_without_vnni_takes_the_kernels_for_avx2(artifact: Any, tmp_path: Path) -> None:
    variant, found = opened_without_vnni(artifact, NAMES, tmp_path)
    assert variant == "avx2"
    _check(artifact, found)


def test_a_cpu_without_avx2_is_told_so_before_anything_is_opened(
    artifact: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert artifact.preflight().ok
    plugin = artifact.plugin()
    monkeypatch.setattr(type(plugin), "host", lambda self: Host("x86_64", ("sse4_2",), 2, "Linux"))
    assert "avx2" in plugin.preflight(artifact).missing[0].what


def test_a_name_that_no_variant_has(artifact: Any) -> None:
    with pytest.raises(DeviceError, match="no kernels for sse9"):
        Model(artifact.path, 1, NAMES, variant="sse9")


def _check(artifact: Any, found: dict[str, np.ndarray]) -> None:
    """The last layer's sums are float32: units of earlier layers that lie at a tie change them a little."""
    for name, wanted in artifact.golden().outputs[0].items():
        np.testing.assert_allclose(found[name], wanted, atol=0.02 * np.abs(wanted).max())
