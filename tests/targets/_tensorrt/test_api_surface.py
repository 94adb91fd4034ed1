"""Every TensorRT name that the program uses exists in 8.6, 10.3, 10.16 and 11.4, by recordings of the bindings."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from fake_tensorrt import SURFACES, surface

from deploykit_targets._on_device import board
from deploykit_targets._tensorrt import build_engine

# 8.6.1 stands for the 8.5.2 of JetPack 5, whose bindings the package index does not have.
VERSIONS = ("8.6.1", "10.3.0", "10.16.1.11", "11.4.0.106")
RTX = "rtx-1.7.1.116"
# What the build program calls an object of which class.
CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "error": "ParserError",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "_runtime": "Runtime",
    "_engine": "ICudaEngine",
    "_context": "IExecutionContext",
    "inspector": "EngineInspector",
}
# Used only behind `is_rtx` or for `--compile-for`: TensorRT for RTX has them.
RTX_ONLY = {
    "ComputeCapability",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "ICudaEngine.create_runtime_config",
}
# Used only behind `hasattr` or where `is_strongly_typed` says so; absent from some versions.
GUARDED = {"OnnxParserFlag.ADJUST_FOR_DLA", "NetworkDefinitionCreationFlag.EXPLICIT_BATCH"}
GUARDED |= {"ParserError.node_name", "ParserError.node_operator"}
# Names of parameters (`error` in `except ... as error`) and of Python itself that look like the ones above.
NOT_TENSORRT = {"ParserError.code", "ParserError.hint"}


def names_used(source: str) -> set[str]:
    """Dotted names that a program takes from `trt` or from an object in `CLASSES`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute):
            continue
        chain = dotted(node)
        root, *rest = chain
        if root == "self" and rest:
            root, *rest = rest
        if root in ("trt", "_trt") and rest:
            found.add(".".join(rest[:2]))
        elif root in CLASSES and rest:
            found.add(f"{CLASSES[root]}.{rest[0]}")
    return found - NOT_TENSORRT


def dotted(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Attribute):
        return [*dotted(node.value), node.attr]
    return [node.id] if isinstance(node, ast.Name) else ["?"]


def exists(name: str, version: str) -> bool:
    first, _, second = name.partition(".")
    names = surface(version)
    return first == "__version__" or (first in names and (not second or second in names[first]))


USED = sorted(names_used(Path(build_engine.__file__).read_text()))


def test_the_scan_finds_what_the_program_uses() -> None:
    assert len(USED) > 40
    assert {
        "Builder.build_serialized_network",
        "OnnxParser.parse_from_file",
        "IExecutionContext.execute_async_v3",
    } <= set(USED)
    assert "ProfilingVerbosity.DETAILED" in USED and "IProfiler" in USED


@pytest.mark.parametrize("version", VERSIONS)
def test_every_name_exists(version: str) -> None:
    missing = [name for name in USED if not exists(name, version) and name not in GUARDED | RTX_ONLY]
    assert missing == [], f"TensorRT {version} lacks them"


def test_what_11_removed_is_not_used() -> None:
    removed = ("BuilderFlag.FP16", "BuilderFlag.INT8", "Builder.platform_has_fast_int8", "OnnxParser.supports_model")
    assert all(exists(name, "10.3.0") and not exists(name, "11.4.0.106") for name in removed), "recordings differ"
    assert not set(removed) & set(USED)


def test_legacy_flags_exist_where_they_are_set() -> None:
    names = {f"BuilderFlag.{flag}" for flags in build_engine.LEGACY_FLAGS.values() for flag in flags}
    assert all(exists(name, "10.3.0") for name in names)


def test_recordings_say_where_they_are_from() -> None:
    for path in SURFACES.glob("*.json"):
        version, over = path.stem.removeprefix("rtx-"), "its" if path.stem.startswith("rtx-") else "stub"
        assert f"bindings=={version}, imported over {over} libraries" in path.read_text()[:200]


@pytest.mark.parametrize("module", [build_engine, board])
def test_programs_are_python_3_8(module: object) -> None:
    source = Path(str(module.__file__)).read_text()  # type: ignore[attr-defined]
    ast.parse(source, feature_version=(3, 8))
    assert "from __future__ import annotations" in source


def test_every_name_exists_in_tensorrt_for_rtx() -> None:
    absent = {name for name in USED if not exists(name, RTX)}
    assert absent <= GUARDED, "guarded, or of options that it does not have"
    names = ("IRuntimeConfig.create_runtime_cache", "IRuntimeConfig.set_runtime_cache", "IRuntimeCache.serialize")
    assert all(exists(name, RTX) for name in (*names, "IRuntimeCache.deserialize"))


def test_the_recording_of_tensorrt_for_rtx_is_of_the_version_that_the_extra_pins() -> None:
    assert f"{RTX.removeprefix('rtx-')}; " in (Path(__file__).parents[3] / "pyproject.toml").read_text()
