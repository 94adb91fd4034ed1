"""Building a library: the same bytes for the same inputs, refusals, and no TVM where it runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.contract.devices import load_devices
from deploykit.contract.errors import ConversionError, DeviceError, MissingDependencyError
from deploykit.contract.host import Host
from deploykit_targets.tvm.build import CONSTANTS, LIBRARY, PROGRAM, RUNNER, build_library, read_program
from deploykit_targets.tvm.processor import processor_of, processors_of
from deploykit_targets.tvm.program import Operand, Port, Program, Region, Step
from deploykit_targets.tvm.runtime import table
from deploykit_targets.tvm.tools import compiler_for, system_tools
from deploykit_targets.tvm.traffic import traffic_of

FOLDER = Path(table.__file__).parent
DEVICES = load_devices(FOLDER.parent / "devices.toml", toolchain="tvm")


def operand(offset: int, elements: int = 64, region: Region = Region.ARENA) -> Operand:
    return Operand(region, offset, elements, "int8")


def program(*operands: Operand) -> Program:
    return Program((), (), (Step("kernel", operands, "layer", "conv"),), 128, 256)


@pytest.mark.parametrize("device", ["x86-cpu", "raspberry-pi-5"])
def test_the_same_bytes(device: str, compiled: Any, compile_into: Any, tmp_path: Path) -> None:
    first, again = compiled(device), compile_into(device, tmp_path)
    assert first.library == again.library
    for name in (*first.library.files, PROGRAM):
        assert (first.folder / name).read_bytes() == (again.folder / name).read_bytes()


def test_the_program_is_kept(compiled: Any) -> None:
    made = compiled("x86-cpu")
    assert read_program(made.folder / PROGRAM) == made.program


def test_a_board_gets_a_program_and_this_machine_none(compiled: Any) -> None:
    assert set(compiled("x86-cpu").library.files) == {LIBRARY, CONSTANTS}
    assert set(compiled("raspberry-pi-5").library.files) == {LIBRARY, CONSTANTS, RUNNER}


_INTERFACE = ("create", "create_variant", "variant", "destroy", "input", "output", "run", "error")


def test_the_library_exports_the_interface_and_needs_no_tvm(compiled: Any) -> None:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("needs the Debian package binutils")
    said = subprocess.run(
        [nm, "-D", str(compiled("x86-cpu").folder / LIBRARY)], capture_output=True, text=True, check=True
    )
    lines = [line.split() for line in said.stdout.splitlines()]
    exported = {line[-1] for line in lines if line[-2] == "T"}
    assert exported == {f"deploykit_{name}" for name in _INTERFACE}
    assert not [line for line in lines if line[-2] == "U" and "TVM" in line[-1]]


def test_it_runs_in_a_python_that_cannot_import_tvm(compiled: Any, tmp_path: Path) -> None:
    made = compiled("x86-cpu")
    np.save(tmp_path / "x.npy", made.feeds["x"])
    script = """
import ctypes, sys
import numpy as np
sys.modules["tvm"] = sys.modules["torch"] = None
from deploykit_targets.tvm import session, running
from deploykit_targets.tvm.target import TvmTarget
TvmTarget().check_installed(export=False)
library = ctypes.CDLL(sys.argv[1])
library.deploykit_create.restype = ctypes.c_void_p
assert library.deploykit_create(sys.argv[2].encode(), 2, ctypes.create_string_buffer(9), 9)
"""
    files = (str(made.folder / LIBRARY), str(made.folder / CONSTANTS))
    subprocess.run([sys.executable, "-c", script, *files], check=True)


@pytest.mark.parametrize(("device", "package"), [("x86-cpu", "gcc"), ("raspberry-pi-5", "gcc-aarch64-linux-gnu")])
def test_without_a_compiler_the_debian_package_is_named(
    device: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.raises(MissingDependencyError, match=f"apt-get install {package}$"):
        build_library(None, Program((), (), (), 0, 0), b"", DEVICES[device], tmp_path)


def test_constants_of_another_length(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="3 bytes of constants, the program has 128"):
        build_library(None, program(), b"abc", DEVICES["x86-cpu"], tmp_path)


def test_what_the_compiler_says_is_in_the_error(compiled: Any, compile_into: Any, tmp_path: Path) -> None:
    import tvm

    made = compiled("x86-cpu")
    with pytest.raises(ConversionError, match=r"(?s)cannot link model\.so.*__tvm_ffi_conv_0"):
        build_library(
            tvm.IRModule({"other": _kernel()}),
            made.program,
            b"\0" * made.program.constant_bytes,
            DEVICES["x86-cpu"],
            tmp_path,
        )


def _kernel() -> Any:
    from deploykit_targets.tvm.kernels.elementwise import add

    return add(8).with_attr("global_symbol", "other")


# -- the table ----------------------------------------------------------------------------------------------


def test_the_table_of_a_program() -> None:
    source = table.table_source(program(operand(64, region=Region.CONSTANTS), operand(0)), ["neon"], "neon")
    assert 'needs[] = {\n  "neon",\n  NULL,\n}' in source
    assert "{CONSTANTS, {0, 8, 1}, 64, 64},\n  {ARENA, {0, 8, 1}, 0, 64}," in source
    assert '{"kernel", __tvm_ffi_kernel, 0, 2}' in source


@pytest.mark.parametrize(
    ("operands", "said"),
    [
        ([operand(224)], "operand 0 of kernel \\(layer\\) lies outside the arena: byte 288 of 256"),
        ([operand(96, region=Region.CONSTANTS), operand(0)], "outside the constants: byte 160 of 128"),
        ([operand(0, region=Region.CONSTANTS)], "writes to the constants"),
        ([operand(0), operand(32)], "writes over what it reads, at byte 32"),
        ([operand(0), operand(0)], "writes over what it reads, at byte 0"),
    ],
)
def test_programs_that_would_touch_other_memory(operands: list[Operand], said: str) -> None:
    with pytest.raises(ConversionError, match=said):
        table.check(program(*operands))


def test_a_port_outside_the_arena() -> None:
    wrong = replace(program(operand(0)), outputs=(Port("y", (16, 5), "float32", 0),))
    with pytest.raises(ConversionError, match="y lies outside the arena"):
        table.check(wrong)


def test_neighbours_do_not_overlap() -> None:
    table.check(program(operand(0), operand(128), operand(64)))


def test_traffic_counts_what_moves_and_not_the_weights() -> None:
    found = traffic_of(program(operand(64, 60), operand(0, 99, Region.CONSTANTS), operand(128, 40)))
    assert found == {"layer": [60, 40]}


@pytest.mark.parametrize("name", [path.name for path in FOLDER.glob("*.c")])
def test_no_compiler_warns(name: str, tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("needs the Debian package gcc")
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wno-sign-conversion", "-Werror"]
    subprocess.run(["gcc", *flags, "-c", "-o", str(tmp_path / "o"), str(FOLDER / name)], check=True)


# -- processors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "isa", "mcpu"),
    [
        (("avx2", "fma", "avx512bw", "avx512_vnni", "amx_tile", "amx_int8"), "amx_int8", "cascadelake"),
        (("avx2", "fma", "avx512bw", "avx512_vnni"), "avx512_vnni", "cascadelake"),
        (("avx2", "fma", "avx_vnni"), "avx_vnni", "haswell"),
        (("avx2", "fma"), "avx2", "haswell"),
    ],
)
def test_x86_takes_the_best_that_the_host_has(
    features: tuple[str, ...], isa: str, mcpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploykit_targets.tvm.processor.this_host", lambda: Host("x86_64", features, 2, "Linux"))
    monkeypatch.setattr("deploykit_targets.tvm.processor.tiles_granted", lambda: True)
    found = processor_of(DEVICES["x86-cpu"])
    assert (found.isa, found.mcpu) == (isa, mcpu)
    assert bool(found.mattr) == (isa in ("amx_int8", "avx_vnni"))


def test_tiles_that_the_kernel_does_not_grant(monkeypatch: pytest.MonkeyPatch) -> None:
    features = ("avx2", "fma", "avx512bw", "avx512_vnni", "amx_tile", "amx_int8")
    monkeypatch.setattr("deploykit_targets.tvm.processor.this_host", lambda: Host("x86_64", features, 2, "Linux"))
    monkeypatch.setattr("deploykit_targets.tvm.processor.tiles_granted", lambda: False)
    assert processor_of(DEVICES["x86-cpu"]).isa == "avx512_vnni"


@pytest.mark.parametrize(
    ("arch", "features", "isa"),
    [
        ("aarch64", ("asimd", "asimddp", "i8mm"), "i8mm"),
        ("aarch64", ("asimd", "asimddp"), "sdot"),
        ("aarch64", ("asimd",), "neon"),
        ("x86_64", ("avx2", "fma"), "neon"),  # of another machine's kernels the plainest
    ],
)
def test_arm_takes_the_best_that_the_host_has(
    arch: str, features: tuple[str, ...], isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploykit_targets.tvm.processor.this_host", lambda: Host(arch, features, 2, "Linux"))
    assert processor_of(DEVICES["arm-cpu"]).isa == isa
    assert [processor.isa for processor in processors_of(DEVICES["arm-cpu"])] == ["i8mm", "sdot", "neon"]


@pytest.mark.parametrize(
    ("arch", "features", "isa"),
    [
        ("x86_64", ("avx2", "fma", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16"), "amx_bf16"),
        ("x86_64", ("avx2", "fma", "avx512bw", "avx512_vnni", "avx512_bf16"), "avx512_bf16"),
        ("x86_64", ("avx2", "fma", "avx512bw", "avx512_vnni", "amx_tile", "amx_int8"), "avx512_vnni"),
        ("x86_64", ("avx2", "fma", "avx_vnni"), "avx2"),
        ("aarch64", ("asimd", "asimddp", "bf16", "i8mm"), "neon_bf16"),
        ("aarch64", ("asimd", "asimddp", "i8mm"), "neon"),
    ],
)
def test_bfloat16_takes_silicon_that_has_it_and_any_other(
    arch: str, features: tuple[str, ...], isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploykit_targets.tvm.processor.this_host", lambda: Host(arch, features, 2, "Linux"))
    monkeypatch.setattr("deploykit_targets.tvm.processor.tiles_granted", lambda: True)
    device = DEVICES["x86-cpu" if arch == "x86_64" else "arm-cpu"]
    assert processor_of(device, bfloat16=True).isa == isa
    assert [processor.isa for processor in processors_of(device, bfloat16=True)][-1] in ("avx2", "neon")
    assert processor_of(DEVICES["graviton3"], bfloat16=True).isa == "neon_bf16"
    assert processor_of(DEVICES["graviton3"]).isa == "i8mm"


def test_a_host_without_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploykit_targets.tvm.processor.this_host", lambda: Host("x86_64", (), 2, "Linux"))
    with pytest.raises(DeviceError, match="has none of amx_int8, avx512_vnni, avx_vnni, avx2"):
        processor_of(DEVICES["x86-cpu"])


@pytest.mark.parametrize("name", sorted(DEVICES))
def test_every_device_names_kernels_that_there_are(name: str) -> None:
    pytest.importorskip("tvm", reason="TVM is not installed (extra `tvm`)")
    from deploykit_targets.tvm.kernels.isa import ISAS

    device = DEVICES[name]
    assert set(device.extra.get("by_isa", (device.extra["isa"],))) <= ISAS.keys()
    assert bool(device.peak_tops) == bool(device.source)


def test_tools_that_doctor_asks_for() -> None:
    commands = {tool.command: tool.package for tool in system_tools()}
    assert commands["qemu-aarch64-static"] == "qemu-user-static"
    assert compiler_for("aarch64").command in commands and compiler_for("x86_64").command in commands
