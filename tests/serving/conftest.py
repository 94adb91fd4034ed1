"""Real artifacts, exported once, and real servers in processes of their own, spoken to over loopback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `speaking` and `networks`, which several tests share
from speaking import Server, Start, started


@dataclass(frozen=True)
class Artifacts:
    words: Path
    images: Path
    fixed: Path
    floats: Path


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory) -> Artifacts:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from networks import Words, images

    import deploykit

    folder = tmp_path_factory.mktemp("served")
    tokens, image = torch.arange(4)[None], torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    shared = {"profile": False, "progress": False}
    deploykit.export(Words().eval(), "x86-cpu", "fp32", example_inputs=(tokens,), dynamic_batch=True,
                     output=folder / "words", **shared)  # fmt: skip
    data = [torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    int8 = {"calibration": data, "example_inputs": (image,), "min_placement": 0, **shared}
    deploykit.export(images(), "x86-cpu", "int8", dynamic_batch=True, output=folder / "images", **int8)
    deploykit.export(images(), "x86-cpu", "int8", output=folder / "fixed", **int8)
    deploykit.export(images(), "x86-cpu", "fp32", example_inputs=(image,), dynamic_batch=True,
                     output=folder / "floats", **shared)  # fmt: skip
    return Artifacts(*(folder / name for name in ("words", "images", "fixed", "floats")))


@pytest.fixture
def serve() -> Start:
    return started


@pytest.fixture(scope="session")
def shared(artifacts) -> Iterator[Server]:
    """One server for all tests that leave it as it is."""
    more = (f"words:9={artifacts.words}", f"words:10={artifacts.words}", artifacts.images, artifacts.fixed)
    with started(*more, "--max-body", "200k", "--max-queue", "64") as server:
        yield server
