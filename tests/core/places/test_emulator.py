"""The emulator: the exact CPU, crashes and time limits in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deploykit.contract.errors import DeviceError, MissingDependencyError
from deploykit.places.qemu import Emulator, crash_of, emulator_for

DOT = """
#include <arm_neon.h>
#include <stdio.h>
int main(void) {
  volatile int one = 1;
  int32x4_t sums = vdotq_s32(vdupq_n_s32(0), vdupq_n_s8(one), vdupq_n_s8(2));
  printf("%d\\n", sums[0]);
  return 3;
}
"""
ENVIRONMENT = """
#include <stdio.h>
#include <stdlib.h>
int main(int argc, char **argv) {
  printf("%s %s %s", argv[1], getenv("OWN"), getenv("PYTHONPATH") ? "leaked" : "clean");
  return argc - 2;
}
"""
Compile = Callable[[str], Path]


def test_output_and_exit_code(compile_arm: Compile) -> None:
    done = Emulator("cortex-a76").run(compile_arm(DOT))
    assert (done.stdout, done.returncode) == ("8\n", 3)


def test_a_cpu_without_the_instruction_is_named_with_what_it_lacks(compile_arm: Compile) -> None:
    with pytest.raises(DeviceError, match=r"used an instruction that cortex-a72 does not have.*dot products"):
        Emulator("cortex-a72").run(compile_arm(DOT))


def test_arguments_and_environment(compile_arm: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/of/this/machine")
    done = Emulator("cortex-a76", environment={"OWN": "a b"}).run(compile_arm(ENVIRONMENT), "one two")
    assert (done.stdout, done.returncode) == ("one two a b clean", 0)


def test_a_program_that_does_not_end(compile_arm: Compile) -> None:
    endless = compile_arm("#include <unistd.h>\nint main(void) { for (;;) pause(); }")
    with pytest.raises(DeviceError, match=r"did not end within 0\.5 s on an emulated cortex-a76"):
        Emulator("cortex-a76").run(endless, timeout_s=0.5)


def test_a_crash(compile_arm: Compile) -> None:
    with pytest.raises(DeviceError, match="was killed by SIGABRT"):
        Emulator("cortex-a76").run(compile_arm("#include <stdlib.h>\nint main(void) { abort(); }"))


def test_the_first_cpu_that_qemu_knows_is_taken(compile_arm: Compile) -> None:
    assert emulator_for(["cortex-a999", "cortex-a72"]).cpu == "cortex-a72"
    with pytest.raises(DeviceError, match="emulates none of cortex-a999"):
        emulator_for(["cortex-a999"])


def test_without_qemu_the_debian_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingDependencyError, match="sudo apt-get install qemu-user-static"):
        Emulator("cortex-a76").command("program")


@pytest.mark.parametrize(("code", "said"), [(-9, "SIGKILL"), (137, "SIGKILL"), (132, "cortex-a72 does not have")])
def test_signals_directly_or_through_a_shell(code: int, said: str) -> None:
    assert said in crash_of(code, "cortex-a72")


@pytest.mark.parametrize("code", [0, 1, 10, 127])
def test_exit_codes_are_no_crashes(code: int) -> None:
    assert crash_of(code, "cortex-a72") == ""
