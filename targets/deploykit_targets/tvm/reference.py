"""The same program for this machine: what parity is taken from where the board's CPU cannot be emulated here.

The same lowering, scales and order of steps, with kernels of another instruction set; evidence is `reference`. x86
multiplies unsigned bytes: every activation is then held 128 higher, which changes no number that it stands for.
"""

from __future__ import annotations

import copy
import platform
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import GraphModule

from deploykit.contract.devices import load_devices
from deploykit.places.qemu import EMULATOR
from deploykit_targets.tvm.bfloat16 import is_narrowing, is_widening
from deploykit_targets.tvm.build import METADATA, build_library
from deploykit_targets.tvm.kernels.isa import isa
from deploykit_targets.tvm.lower import lower
from deploykit_targets.tvm.ops.table import is_dequantize, is_quantize
from deploykit_targets.tvm.processor import processor_of

if TYPE_CHECKING:
    from deploykit.artifact.store import StoredArtifact
    from deploykit.capture import CapturedModel
    from deploykit_targets.tvm.processor import Processor
    from deploykit_targets.tvm.session import NativeSession

FOLDER = "reference"
"""Of the artifact: holds the files for the exporting machine."""
REFERENCE = "reference_library"
"""Key of the manifest's metadata, as `build.METADATA` for those files."""
_HOSTS = {"x86_64": "x86-cpu"}
_SHIFT = 128


def needs_reference(processor: Processor) -> bool:
    """Whether nothing here runs code for a processor, while this machine has kernels of its own."""
    foreign = processor.arch != platform.machine()
    return foreign and not EMULATOR.installed and platform.machine() in _HOSTS


def build_reference(captured: CapturedModel, graph_module: GraphModule | None, folder: Path) -> dict[str, Any]:
    """Compile a model for this machine into a folder of the artifact.

    Args:
        captured: the model.
        graph_module: its q/dq graph with int8 activations, or the one with casts to bfloat16; None for float.
        folder: the folder of the artifact.
    Returns:
        For the manifest's metadata.
    """
    host = load_devices(Path(__file__).with_name("devices.toml"), toolchain="tvm")[_HOSTS[platform.machine()]]
    graph = None if graph_module is None else as_unsigned(graph_module)
    processor = processor_of(host, bfloat16=graph is not None and any(map(is_narrowing, graph.graph.nodes)))
    finished = lower(captured, isa(processor.isa), graph)
    own = folder / FOLDER
    own.mkdir()
    library = build_library(finished.module, finished.program, finished.constants, host, own, processor=processor)
    return {REFERENCE: library.metadata}


def open_reference(artifact: StoredArtifact, threads: int) -> NativeSession:
    """A session over the files for this machine."""
    from deploykit_targets.tvm.session import NativeSession

    metadata = artifact.manifest.metadata
    manifest = replace(artifact.manifest, metadata={**metadata, METADATA: metadata.get(REFERENCE)})
    return NativeSession(type(artifact)(artifact.path / FOLDER, manifest), threads)


def as_unsigned(module: GraphModule) -> GraphModule:
    """A copy of a q/dq graph whose activations are uint8, each 128 above the int8 that it was."""
    found = GraphModule(module, copy.deepcopy(module.graph))
    for node in found.graph.nodes:
        stored = is_dequantize(node) and getattr(node.args[0], "op", "") == "get_attr"
        if (is_quantize(node) or is_dequantize(node)) and not (stored or is_narrowing(node) or is_widening(node)):
            value, scale, zero_point, low, high, _ = node.args
            node.args = (value, scale, zero_point + _SHIFT, low + _SHIFT, high + _SHIFT, torch.uint8)
    return found
