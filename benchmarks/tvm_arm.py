"""Arm kernels of whole networks, estimated: their hot loops in LLVM's model of the core.

    OMP_NUM_THREADS=1 PYTHONPATH=.:calibration:targets python benchmarks/tvm_arm.py --llvm-mca PATH

No Arm machine is measured here; every figure is an estimate. The kernels are those of an export: the model is captured,
calibrated, quantised, lowered and compiled for the device, and the innermost loop with the most multiplications of each
convolution and product is given to `llvm-mca`, which plays it on its model of the core's pipelines. Data are taken to
be in the first-level cache; what surrounds the loops (rescaling, borders, other operators) is not in these figures.
`--qemu` adds whole networks, with all that: the program for boards runs under emulation on an image that calibration
did not see, and its outputs are compared with those of the simulated q/dq graph. The emulator tells each block that it
executes, and stretches of every function are played in the same model (`arm_trace.py`).

With `--network`, `--device` or `--precision` only these are estimated anew; other rows of the results stay.

`ideal` is what the instruction's rate in the same model allows; `of_ideal` is the share that the loop reaches. Means
over a network are weighted by the layers' multiply-accumulates, as times.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import models
import numpy as np
import torch
from arm_trace import Disassembly, cycles_of, trace
from harness import RESULTS, quiet, report

import deploykit
from deploykit.capture import capture
from deploykit.contract.decibels import sqnr_db
from deploykit.contract.devices import Device
from deploykit.contract.precision import Precision
from deploykit.pipeline import steps
from deploykit.pipeline.plan import make_request
from deploykit.plugin.registry import resolve
from deploykit_calibration.observe import CalibrationRun
from deploykit_targets.tvm import build
from deploykit_targets.tvm import convert as conversion
from deploykit_targets.tvm.build import CONSTANTS, RUNNER
from deploykit_targets.tvm.disassemble import code_of, functions_of

ITERATIONS = 200
WHOLE_NOTES = (
    "estimate, not measured: all that one thread executes, traced under emulation, in llvm-mca; data in the"
    " first-level cache, branches foreseen",
    "ms at the device's clock; weights and activations that come from memory take longer",
    "of_ideal: the time at the ideal rate of the device's best instruction, over that of the layers with"
    " multiply-accumulates; what the program computes on an unseen image is compared with the simulated q/dq graph",
)
# Multiply-accumulates of one instruction.
MACS = {"sdot": 16, "smmla": 32, "fmla": 4, "smull": 8, "smull2": 8, "smlal": 8, "smlal2": 8}
FLOAT = ("fmla",)
# Device -> LLVM's model. Cortex-A76 has none of its own; Neoverse N1 is its server form.
CORES = {"raspberry-pi-5": "neoverse-n1", "raspberry-pi-4": "cortex-a72", "graviton3": "neoverse-v1"}
MODELS = {"ResNet-50": models.resnet50, "ResNet-18": models.resnet18, "MobileNetV2": models.mobilenet_v2}
ATTRIBUTES = "+dotprod,+i8mm,+fullfp16"

_LABEL = re.compile(r"^(\.L\w+):")
_BRANCH = re.compile(r"^\s+(?:b\.?\w*|cbn?z|tbn?z)\s.*?(\.L\w+)\s*$")
_INSTRUCTION = re.compile(r"^\s+([a-z][a-z0-9]*)(?:\.[a-z0-9]+)?(?:\s|$)")


@dataclass(frozen=True)
class Width:
    """How much a core may start per cycle, where LLVM's model is narrower than the vendor's description.

    LLVM 22 lets Neoverse N1 start 3 micro-operations per cycle, so that the compiler is careful. GCC's description
    (gcc/config/aarch64/neoverse-n1.md, "based on the Neoverse N1 Software Optimization Guide") has eight units that
    start one each: two and one for integers, two for vectors, one for branches, two for memory. Four instructions are
    decoded per cycle (Arm's Technical Overview of Neoverse N1 and Cortex-A76, from memory).
    """

    micro_operations: int
    instructions: int


WIDTHS = {"neoverse-n1": Width(8, 4)}


@dataclass(frozen=True)
class Core:
    """LLVM's model of a core, and the tool that plays it."""

    tool: str
    name: str

    def cycles(self, instructions: Sequence[str]) -> float:
        """Cycles of one turn of a loop, in the steady state, with the width that the vendor describes."""
        if self.name not in WIDTHS:
            return self.narrow_cycles(instructions)
        width = WIDTHS[self.name]
        played = self._play(instructions, f"-dispatch={width.micro_operations}")
        return max(played, len(instructions) / width.instructions)

    def trace_cycles(self, instructions: Sequence[str]) -> float:
        """Cycles of a stretch that runs once."""
        width = WIDTHS.get(self.name)
        played = self._play(instructions, *([f"-dispatch={width.micro_operations}"] if width else []), iterations=1)
        return max(played, len(instructions) / width.instructions) if width else played

    def narrow_cycles(self, instructions: Sequence[str]) -> float:
        """The same with the width of LLVM's model."""
        return self._play(instructions)

    def _play(self, instructions: Sequence[str], *options: str, iterations: int = ITERATIONS) -> float:
        command = [self.tool, "-mtriple=aarch64-linux-gnu", f"-mcpu={self.name}", f"-mattr={ATTRIBUTES}"]
        command += [f"-iterations={iterations}", *options, "-"]
        text = "\n".join(instructions) + "\n"
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=True, timeout=300)
        found = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
        assert found is not None
        return int(found.group(1)) / iterations

    def ideal(self, mnemonic: str) -> float:
        """Multiply-accumulates per cycle of nothing but this instruction, on independent registers."""
        operands = {
            "sdot": "v{0}.4s, v30.16b, v31.4b[0]",
            "smmla": "v{0}.4s, v30.16b, v31.16b",
            "fmla": "v{0}.4s, v30.4s, v31.s[0]",
            "smull": "v{0}.8h, v30.8b, v31.8b",
            "smull2": "v{0}.8h, v30.16b, v31.16b",
            "smlal": "v{0}.4s, v30.4h, v31.4h",
            "smlal2": "v{0}.4s, v30.8h, v31.8h",
        }[mnemonic]
        count = 24
        return MACS[mnemonic] * count / self.cycles([f"\t{mnemonic} {operands.format(i)}" for i in range(count)])


@dataclass(frozen=True)
class Loop:
    """The hot loop of a kernel."""

    instructions: tuple[str, ...]
    mnemonics: Mapping[str, int]

    @property
    def macs(self) -> int:
        """Multiply-accumulates per turn; of widening 16-bit products into 32 bits, an instruction has four."""
        return sum(_macs_of(line) for line in self.instructions)

    @property
    def main(self) -> str:
        """The multiplication it has most of."""
        return max(self.mnemonics, key=lambda name: self.mnemonics[name])


def _macs_of(line: str) -> int:
    found = _INSTRUCTION.match(line)
    if found is None or found.group(1) not in MACS:
        return 0
    halved = (
        ".2s" in line if found.group(1) in FLOAT else found.group(1).startswith(("smlal", "smull")) and ".4s" in line
    )
    return MACS[found.group(1)] // (2 if halved else 1)


def loops_of(body: str) -> Iterator[list[str]]:
    """Innermost loops of a function: from a label to the branch back to it, with no other such pair inside."""
    lines = body.splitlines()
    labels: dict[str, int] = {}
    spans = []
    for index, line in enumerate(lines):
        if label := _LABEL.match(line):
            labels[label.group(1)] = index
        elif (branch := _BRANCH.match(line)) and branch.group(1) in labels:
            spans.append((labels[branch.group(1)], index))
    for first, last in spans:
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in spans):
            yield [line for line in lines[first : last + 1] if _INSTRUCTION.match(line)]


def hot_loop(assembly: str, symbol: str, *, integer: bool) -> Loop | None:
    """The innermost loop of a kernel with the most multiplications of its kind; None where all is unrolled."""
    found = [best_loop(body, integer=integer) for body in code_of(assembly, symbol)]
    return max((loop for loop in found if loop), key=lambda loop: sum(loop.mnemonics.values()), default=None)


def best_loop(body: str, *, integer: bool) -> Loop | None:
    """The same of one function."""
    wanted = [name for name in MACS if (name in FLOAT) != integer]
    found = []
    for lines in loops_of(body):
        names = [match.group(1) for line in lines if (match := _INSTRUCTION.match(line))]
        counts = {name: names.count(name) for name in wanted if name in names}
        if counts:
            found.append(Loop(tuple(lines), counts))
    # of equals the shortest: compilers place a first turn, with what surrounds it, between a label and a branch, too
    return max(found, key=lambda loop: (sum(loop.mnemonics.values()), -len(loop.instructions)), default=None)


# XNNPACK's kernels of quantised (signed, per channel) and float products for each core, as LiteRT's library names them.
XNNPACK = {
    "raspberry-pi-5": {"int8": r"xnn_qs8_qc8w_i?gemm_.*neondot.*", "fp32": r"xnn_f32_i?gemm_minmax_.*"},
    "raspberry-pi-4": {"int8": r"xnn_qs8_qc8w_i?gemm_.*(?:mlal).*", "fp32": r"xnn_f32_i?gemm_minmax_.*"},
    "graviton3": {"int8": r"xnn_qs8_qc8w_i?gemm_.*4x16c8__neoni8mm", "fp32": r"xnn_f32_i?gemm_minmax_.*"},
}
_SYMBOL = re.compile(r"^[0-9a-f]+ <(xnn_\w+)>:$")
_DISASSEMBLED = re.compile(r"^ *([0-9a-f]+):\t[0-9a-f]{8} +\t(.*?)(?:\s*//.*)?$")
_TARGET = re.compile(r"\b([0-9a-f]+) <[^>]*>")


def xnnpack_code(library: Path, objdump: str) -> dict[str, str]:
    """XNNPACK's kernels in LiteRT's library: name to assembly with labels, as `loops_of` takes it."""
    said = subprocess.run([objdump, "-d", str(library)], capture_output=True, text=True, check=True).stdout
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in said.splitlines():
        if line.endswith(">:"):
            symbol = _SYMBOL.match(line)
            current = found.setdefault(symbol.group(1), []) if symbol else []
        elif parts := _DISASSEMBLED.match(line):
            text = _TARGET.sub(r".L\1", parts.group(2).rstrip())
            current += [f".L{parts.group(1)}:", "\t" + text.replace(" ", "\t", 1) if "\t" not in text else "\t" + text]
    return {name: "\n".join(lines) for name, lines in found.items()}


def xnnpack_rows(core: Core, device: str, code: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The best of XNNPACK's kernels for a core, by the same model: each precision's fastest loop."""
    for precision, pattern in XNNPACK[device].items():
        best: dict[str, Any] | None = None
        for name, body in code.items():
            loop = best_loop(body, integer=precision == "int8") if re.fullmatch(pattern, name) else None
            if loop is None:
                continue
            rate, ideal = loop.macs / core.cycles(loop.instructions), core.ideal(loop.main)
            if best is None or rate > best["macs_per_cycle"]:
                best = {"device": device, "precision": precision, "xnnpack_kernel": name, "instruction": loop.main}
                best |= {"macs_per_cycle": rate, "ideal": ideal, "of_ideal": rate / ideal}
        if best:
            yield best


def prepare(make: Any) -> tuple[Any, Any]:
    """Capture a network and calibrate it: which ranges it has does not change its kernels."""
    model, example = make()
    data = [(row[None],) for row in models.images(2)]
    with quiet():
        captured = capture(model, example_inputs=example)
        return captured, deploykit.calibrate(model, data, example_inputs=example, progress=False)


@dataclass(frozen=True)
class Built:
    """An export up to the library."""

    library: Any
    program: Any
    prepared: Any


def compile_for(device: Device, captured: Any, table: Any, precision: Precision, folder: Path) -> Built:
    """Export up to the library, into a folder."""
    made: list[tuple[Any, Any]] = []
    link = conversion.link_library

    def keep(variants: Any, *rest: Any) -> Any:
        library = link(variants, *rest)
        made.append((library, variants[-1].program))
        return library

    named = tuple(option for option in build._RUNNER if option != "-s")  # traces are told by functions
    with (
        quiet(),
        mock.patch.object(conversion, "link_library", keep),
        mock.patch.object(build, "_RUNNER", named),
    ):
        run = None if table is None else CalibrationRun(table)
        prepared = steps.prepare(make_request(f"{device.name}:tvm", precision), captured, run)
        steps.lower(prepared, folder)
    return Built(*made[0], prepared)


def rows_of(core: Core, device: str, network: str, precision: Precision, built: Built) -> Iterator[dict[str, Any]]:
    """One row per distinct kernel."""
    library, program = built.library, built.program
    steps: dict[str, list[Any]] = {}
    for step in program.steps:
        if step.macs:
            steps.setdefault(step.symbol, []).append(step)
    for symbol, calls in steps.items():
        loop = hot_loop(library.assembly, symbol, integer=calls[0].integer)
        row = {
            "network": network,
            "device": device,
            "precision": str(precision),
            "kernel": symbol,
            "kind": calls[0].kind,
        }
        row |= {"layers": len(calls), "macs": sum(step.macs for step in calls)}
        if loop is None:
            yield {
                **row,
                "instruction": "",
                **dict.fromkeys(("macs_per_cycle", "ideal", "of_ideal", "of_ideal_narrow")),
            }
            continue
        rate, ideal = loop.macs / core.cycles(loop.instructions), core.ideal(loop.main)
        narrow = loop.macs / core.narrow_cycles(loop.instructions)
        rates = {"macs_per_cycle": rate, "ideal": ideal, "of_ideal": rate / ideal, "of_ideal_narrow": narrow / ideal}
        yield {**row, "instruction": loop.main, **rates}


def whole_row(
    core: Core, device: Device, network: str, precision: Precision, built: Built, traced: Traced
) -> dict[str, Any]:
    """The whole network, by what its program executes."""
    library, program, code = built.library, built.program, Disassembly(traced.folder / RUNNER, traced.objdump)
    inputs, outputs = traced.folder / "inputs", traced.folder / "outputs"
    image = models.images(3)[2][None].numpy()
    inputs.write_bytes(image.tobytes())
    words = [str(traced.folder / CONSTANTS), "1", str(inputs), str(outputs)]
    found = trace([traced.qemu, "-cpu", traced.cpu], traced.folder / RUNNER, words, code)
    cycles: dict[str, float] = {}
    for symbol in {step.symbol for step in program.steps}:
        own = [found[name] for name in functions_of(library.assembly, symbol) if name in found]
        cycles[symbol] = sum(cycles_of(function, code, core.trace_cycles) for function in own)
    kinds, layers = {step.symbol: step.kind for step in program.steps}, {s.symbol for s in program.steps if s.macs}
    spent = {
        kind: sum(cycles[symbol] for symbol, its in kinds.items() if its == kind)
        for kind in sorted(set(kinds.values()))
    }
    total, macs = sum(cycles.values()), sum(step.macs for step in program.steps)
    row = {"network": network, "device": device.name, "precision": str(precision)}
    row |= {"mega_cycles": total / 1e6, "ms_at_clock": total / device.extra["clock_ghz"] / 1e6}
    row |= {
        "macs_per_cycle": macs / total,
        "of_ideal": macs / ideal_rate(core, precision) / sum(map(cycles.get, layers)),
    }
    row |= {f"{kind}_share": spent.get(kind, 0.0) / total for kind in ("conv", "depthwise")}
    row |= {"other_share": sum(cycles[symbol] for symbol in kinds.keys() - layers) / total}
    return row | compared(built, image, outputs)


def ideal_rate(core: Core, precision: Precision) -> float:
    """Multiply-accumulates a cycle of the best instruction that the kernels use on a core."""
    integer = {"neoverse-n1": "sdot", "cortex-a72": "smull", "neoverse-v1": "smmla"}[core.name]
    return core.ideal(integer if precision is Precision.INT8 else "fmla")


def compared(built: Built, image: np.ndarray[Any, Any], outputs: Path) -> dict[str, float]:
    """How far the program's outputs are from the simulated q/dq graph's, or of float32 from the model's."""
    ((name, _),) = built.prepared.captured.example_feeds().items()
    feeds = {name: torch.from_numpy(image)}
    simulation = built.prepared.simulation
    with quiet():
        wanted = built.prepared.captured.run(feeds) if simulation is None else simulation.run({name: image})
    (values,) = (np.asarray(value, np.float64).ravel() for value in wanted.values())
    found = np.fromfile(outputs, np.float32).astype(np.float64)
    return {
        "sqnr_db": sqnr_db(float((values**2).sum()), float(((values - found) ** 2).sum())),
        "largest_difference": float(np.abs(values - found).max() / np.abs(values).max()),
    }


@dataclass(frozen=True)
class Traced:
    """Where and how a program is run for its trace."""

    folder: Path
    qemu: str
    cpu: str
    objdump: str


def mean_rate(rows: Sequence[Mapping[str, Any]]) -> float:
    """All multiply-accumulates over all cycles."""
    known = [row for row in rows if row["macs_per_cycle"]]
    return float(sum(row["macs"] for row in known) / sum(row["macs"] / row["macs_per_cycle"] for row in known))


def grouped(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Kernels of one kind and instruction as one row: mean and worst of their loops."""
    names = ("network", "device", "precision", "kind", "instruction")
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return [{**dict(zip(names, key, strict=True)), **_condensed(own)} for key, own in found.items()]


def _condensed(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    counts = {"kernels": len(rows), "layers": sum(r["layers"] for r in rows), "macs": sum(r["macs"] for r in rows)}
    known = [row for row in rows if row["macs_per_cycle"]]
    if not known:
        return counts
    shares = {"of_ideal": mean_share(known, "of_ideal"), "worst_of_ideal": min(row["of_ideal"] for row in known)}
    return {
        **counts,
        "macs_per_cycle": mean_rate(known),
        **shares,
        "at_llvm_width": mean_share(known, "of_ideal_narrow"),
    }


def mean_share(rows: Sequence[Mapping[str, Any]], share: str) -> float | None:
    """Ideal time over time; None without rows."""
    if not rows:
        return None
    ideal = sum(row["macs"] / row["ideal"] for row in rows)
    return float(ideal / sum(row["macs"] / row["ideal"] / row[share] for row in rows))


def summary_of(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Per network and device: the mean rates and the two goals; None for what there are no rows of."""
    for network, device in dict.fromkeys((row["network"], row["device"]) for row in rows):
        own = [row for row in rows if (row["network"], row["device"]) == (network, device)]
        integer, floating = ([r for r in own if r["precision"] == p] for p in ("int8", "fp32"))
        dots = [row for row in integer if row["instruction"] in ("sdot", "smmla")]
        yield {
            "network": network,
            "device": device,
            "int8_macs_per_cycle": mean_rate(integer) if integer else None,
            "fp32_macs_per_cycle": mean_rate(floating) if floating else None,
            "int8_over_fp32": mean_rate(integer) / mean_rate(floating) if integer and floating else None,
            "dot_product_share_of_macs": sum(r["macs"] for r in dots) / sum(r["macs"] for r in integer)
            if integer
            else None,
            "dot_products_of_ideal": mean_share(dots, "of_ideal"),
            "the_same_at_llvm_width": mean_share(dots, "of_ideal_narrow"),
            "worst_dot_product_kernel_of_ideal": min((r["of_ideal"] for r in dots), default=None),
            "macs_without_a_loop": sum(r["macs"] for r in own if not r["macs_per_cycle"]),
        }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--llvm-mca", default="llvm-mca-22", help="of LLVM 22 (Debian: llvm-22)")
    arguments.add_argument("--litert", type=Path, help="libpywrap_litert_common.so of ai-edge-litert's aarch64 wheel")
    arguments.add_argument("--objdump", default="aarch64-linux-gnu-objdump")
    arguments.add_argument("--qemu", default="", help="qemu-aarch64-static; 9 or newer knows Neoverse V1")
    arguments.add_argument("--network", choices=sorted(MODELS), action="append")
    arguments.add_argument("--device", choices=sorted(CORES), action="append")
    arguments.add_argument("--precision", choices=("int8", "fp32"), action="append")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    version = subprocess.run([given.llvm_mca, "--version"], capture_output=True, text=True, check=True).stdout
    rows: list[dict[str, Any]] = []
    wholes: list[dict[str, Any]] = []
    for network in given.network or MODELS:
        captured, table = prepare(MODELS[network])
        for name in given.device or CORES:
            core, device = Core(given.llvm_mca, CORES[name]), resolve(f"{name}:tvm").device
            for precision in map(Precision, given.precision or ("int8", "fp32")):
                with tempfile.TemporaryDirectory() as folder:
                    built = compile_for(device, captured, table, precision, Path(folder))
                    rows += rows_of(core, name, network, precision, built)
                    if given.qemu:
                        traced = Traced(Path(folder), given.qemu, device.extra["emulators"][0], given.objdump)
                        wholes.append(whole_row(core, device, network, precision, built, traced))
                        print(wholes[-1], flush=True)
    if given.litert:
        code = xnnpack_code(given.litert, given.objdump)
        theirs = [r for d in given.device or CORES for r in xnnpack_rows(Core(given.llvm_mca, CORES[d]), d, code)]
        report("tvm_arm_xnnpack", theirs, notes=[*notes(version), "XNNPACK's fastest loop per core and precision"])
    if wholes:
        report("tvm_arm_whole", with_kept("tvm_arm_whole", wholes), notes=[notes(version)[1], *WHOLE_NOTES])
    report("tvm_arm_kernels", with_kept("tvm_arm_kernels", grouped(rows)), notes=notes(version))
    report("tvm_arm", with_kept("tvm_arm", summary_of(rows)), notes=notes(version))


def with_kept(name: str, rows: Collection[dict[str, Any]] | Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows, and those of the results there are that are of other networks, devices and precisions; in one order.

    A summary's figures of a precision that was not estimated anew stay, too.
    """
    path, made = RESULTS / f"{name}.json", list(rows)
    before = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    kept = {_key(row): row for row in before}
    merged = [{**kept.get(_key(row), {}), **{k: v for k, v in row.items() if v is not None}} for row in made]
    own = {_key(row) for row in made}
    touched = {key[:3] for key in own}
    others = [row for key, row in kept.items() if key[:3] not in touched]
    for row in merged:
        if {"int8_macs_per_cycle", "fp32_macs_per_cycle"} <= row.keys():
            row["int8_over_fp32"] = row["int8_macs_per_cycle"] / row["fp32_macs_per_cycle"]
    order = [(network, device) for network in MODELS for device in CORES]
    return sorted([*others, *merged], key=lambda row: order.index((row["network"], row["device"])))


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("network", "device", "precision", "kind", "instruction"))


def notes(version: str) -> list[str]:
    """What a reader must know."""
    cores = ", ".join(f"{device}: {core}" for device, core in CORES.items())
    found = re.search(r"LLVM version ([\d.]+)", version)
    return [
        "estimate, not measured: hot loops in llvm-mca, data in the first-level cache, nothing around the loops",
        f"LLVM {found.group(1) if found else 'unknown'}, models of the cores: {cores}",
    ]


if __name__ == "__main__":
    main()
