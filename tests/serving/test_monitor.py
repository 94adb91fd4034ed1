"""Sensors on a fake sysfs tree: what is read, from where, and that what is absent is named and never zero."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.contract.errors import UsageError
from deploykit.contract.session import FunctionSession
from deploykit.contract.tensors import TensorSpec
from deploykit_serving.monitor import Monitor
from deploykit_serving.monitor.energy import Window, energies
from deploykit_serving.monitor.jetson import JetsonSource
from deploykit_serving.monitor.nvml import NvmlSource
from deploykit_serving.monitor.process import ProcessSource
from deploykit_serving.monitor.rapl import RaplSource
from deploykit_serving.monitor.reading import Reading, Snapshot
from deploykit_serving.monitor.thermal import ThermalSource
from deploykit_serving.monitor.watch import watch


def write(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


RAPL = {
    "sys/class/powercap/intel-rapl:0/name": "package-0",
    "sys/class/powercap/intel-rapl:0/energy_uj": 5_000_000,
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": 10_000_000,
    "sys/class/powercap/intel-rapl:0:0/name": "core",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": 2_000_000,
    "sys/class/powercap/intel-rapl:0:0/max_energy_range_uj": 10_000_000,
    "sys/class/powercap/intel-rapl-mmio:0/name": "package-0",
    "sys/class/powercap/intel-rapl-mmio:0/energy_uj": 5_000_000,
}


def by_name(readings: Any) -> dict[tuple[str, str], Reading]:
    return {(one.metric, one.of): one for one in readings}


def test_rapl_is_read_in_joules_and_followed_over_its_turn(tmp_path) -> None:
    source = RaplSource(write(tmp_path, RAPL))
    readings, absent = source.read()
    found = by_name(readings)
    assert not absent and found.keys() == {("energy_joules", "package-0"), ("energy_joules", "package-0/core")}
    assert found["energy_joules", "package-0"].value == 5.0 and found["energy_joules", "package-0"].counts
    assert found["energy_joules", "package-0"].source.endswith("intel-rapl:0/energy_uj")
    write(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": 1_000_000})
    assert by_name(source.read()[0])["energy_joules", "package-0"].value == 11.0
    write(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": 500_000})
    assert by_name(source.read()[0])["energy_joules", "package-0"].value == 20.5


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_counter_for_root_is_absent_with_the_next_step(tmp_path) -> None:
    write(tmp_path, RAPL)
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").chmod(0)
    readings, (absent,) = RaplSource(tmp_path).read()
    assert [one.of for one in readings] == ["package-0/core"] and "root" in absent.reason


@pytest.mark.parametrize("content", ["", "nan", "0x10", "12 34", "\0"])
def test_a_file_without_a_number_is_absent_and_not_zero(tmp_path, content: str) -> None:
    write(tmp_path, RAPL | {"sys/class/powercap/intel-rapl:0/energy_uj": content})
    readings, absent = RaplSource(tmp_path).read()
    assert [one.of for one in readings] == ["package-0/core"] and "no number" in absent[0].reason


ORIN = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "sys/devices/platform/17000000.gpu/load": 385,
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/in1_label": "VDD_GPU_SOC",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/in1_input": 19_000,
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/curr1_input": 500,
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/in2_label": "VDD_CPU_CV",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/in2_input": 19_000,
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/curr2_input": 100,
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/in7_label": "sum of shunt voltages",
}


def test_a_jetson_tells_use_and_watts_of_its_rails(tmp_path) -> None:
    readings, absent = JetsonSource(write(tmp_path, ORIN)).read()
    found = {key: one.value for key, one in by_name(readings).items()}
    assert not absent
    assert found == {
        ("gpu_use_ratio", "gpu0"): 0.385,
        ("power_watts", "VDD_GPU_SOC"): 9.5,
        ("power_watts", "VDD_CPU_CV"): pytest.approx(1.9),
    }


def test_a_jetson_without_its_sensors_names_them(tmp_path) -> None:
    readings, absent = JetsonSource(write(tmp_path, {"proc/device-tree/model": "NVIDIA Jetson Nano\0"})).read()
    assert not readings and {one.source for one in absent} == {"jetson gpu", "jetson power"}
    assert JetsonSource(tmp_path / "empty").read()[1][0].reason == "this machine is no Jetson"


THERMAL = {
    "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp",
    "sys/class/thermal/thermal_zone0/temp": 61_500,
    "sys/class/hwmon/hwmon0/name": "k10temp",
    "sys/class/hwmon/hwmon0/temp1_input": 48_250,
    "sys/class/hwmon/hwmon1/name": "nvme",
    "sys/class/hwmon/hwmon1/temp1_input": 30_000,
    "sys/class/hwmon/hwmon1/temp1_label": "Composite",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": 7,
    "sys/devices/system/cpu/cpu10/thermal_throttle/core_throttle_count": 3,
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": 1_800_000,
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": 3_600_000,
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50005",
}


def test_temperatures_clocks_and_throttling(tmp_path) -> None:
    readings, absent = ThermalSource(write(tmp_path, THERMAL)).read()
    found = {key: one.value for key, one in by_name(readings).items()}
    assert not absent
    assert found["temperature_celsius", "thermal_zone0 x86_pkg_temp"] == 61.5
    assert found["temperature_celsius", "hwmon0 k10temp"] == 48.25
    assert found["temperature_celsius", "hwmon1 Composite"] == 30.0
    assert found["thermal_throttles", "cpu0"] == 7 and found["thermal_throttles", "cpu10"] == 3
    assert found["clock_hertz", "policy0"] == 1.8e9 and found["clock_limit_hertz", "policy0"] == 3.6e9
    assert found["throttled", "under_voltage"] == 1 and found["throttled", "throttled"] == 1
    assert found["throttled", "frequency_capped"] == 0 and found["throttled_since_start", "throttled"] == 1


def test_a_machine_without_sensors_gives_names_and_no_zero(tmp_path) -> None:
    for source in (RaplSource(tmp_path), JetsonSource(tmp_path), ThermalSource(tmp_path)):
        readings, absent = source.read()
        assert not readings and absent and all(one.source and one.reason for one in absent)


class Nvml:
    """The calls of `pynvml` that are used, of one GPU that has no counter of energy."""

    NVML_TEMPERATURE_GPU = 0

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return f"handle{index}"

    def nvmlDeviceGetUtilizationRates(self, _: str) -> Any:
        return type("Rates", (), {"gpu": 70})

    def nvmlDeviceGetMemoryInfo(self, _: str) -> Any:
        return type("Memory", (), {"used": 1 << 30})

    def nvmlDeviceGetPowerUsage(self, _: str) -> int:
        return 250_000

    def nvmlDeviceGetTotalEnergyConsumption(self, _: str) -> int:
        raise RuntimeError("Not Supported")

    def nvmlDeviceGetTemperature(self, _: str, sensor: int) -> int:
        return 65

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, _: str) -> int:
        return 0x20


def test_a_gpu_tells_what_it_can_and_names_the_rest() -> None:
    readings, absent = NvmlSource(Nvml()).read()
    found = {key: one.value for key, one in by_name(readings).items()}
    assert found["gpu_use_ratio", "gpu0"] == 0.7 and found["power_watts", "gpu0"] == 250
    assert found["throttled", "gpu0 thermal"] == 1 and found["throttled", "gpu0 power_cap"] == 0
    assert [(one.source, one.reason) for one in absent] == [("nvml gpu0 energy_joules", "Not Supported")]


def test_without_a_driver_nvml_is_absent_with_its_reason() -> None:
    class Broken(Nvml):
        def nvmlInit(self) -> None:
            raise RuntimeError("Driver Not Loaded")

    assert NvmlSource(Broken()).read() == ((), NvmlSource(Broken()).read()[1])
    assert NvmlSource(Broken()).read()[1][0].reason == "Driver Not Loaded"


def test_a_process_tells_its_time_and_memory() -> None:
    found = {one.metric: one for one in ProcessSource().read()[0]}
    assert found["process_cpu_seconds"].value > 0 and found["process_resident_bytes"].value > 1e6
    assert found["process_cpu_seconds"].source == "psutil"


# -- energy -----------------------------------------------------------------------------------------------------


def counted(*joules: float, inferences: int = 10, seconds: float = 1.0) -> list[Window]:
    """Windows in which a counter grows by these."""
    windows, at, value = [], 0.0, 100.0
    for each in joules:
        first = Snapshot(at, (Reading("energy_joules", "package-0", value, "file"),))
        at, value = at + seconds, value + each
        windows.append(
            Window((first, Snapshot(at, (Reading("energy_joules", "package-0", value, "file"),))), inferences)
        )
    return windows


def test_energy_is_the_ratio_with_students_interval() -> None:
    (found,), notes = energies(counted(9.0, 10.0, 11.0), ())
    assert not notes and found.joules == pytest.approx(1.0) and found.inferences == 30
    half = 4.303 * math.sqrt(1.0 / 3) / 10  # residuals -1, 0, 1 over 10 inferences each
    assert found.high_joules - found.joules == pytest.approx(half, rel=1e-6)
    assert found.low_joules == pytest.approx(1.0 - half) and found.above_idle_joules is None


def test_idle_power_is_told_and_taken_off_with_its_own_spread() -> None:
    idle = counted(2.0, 2.0, 2.0, inferences=0)
    (found,), _ = energies(counted(10.0, 10.0, 10.0), idle)
    assert found.idle_watts == 2.0 and found.above_idle_joules == pytest.approx(0.8)
    assert found.above_idle_low_joules == pytest.approx(0.8), "nothing varied"
    uneven = counted(1.0, 2.0, 3.0, inferences=0)
    (wider,), _ = energies(counted(10.0, 10.0, 10.0), uneven)
    assert wider.above_idle_low_joules is not None and wider.above_idle_low_joules < 0.7


def test_power_is_integrated_where_there_is_no_counter() -> None:
    def at(second: float, watts: float) -> Snapshot:
        return Snapshot(second, (Reading("power_watts", "VDD_IN", watts, "file"),))

    windows = [Window((at(n, 4.0), at(n + 0.5, 6.0), at(n + 1.0, 4.0)), 5) for n in range(3)]
    (found,), _ = energies(windows, ())
    assert found.joules == pytest.approx(1.0) and found.of == "VDD_IN"


def test_without_enough_there_is_no_figure_but_a_reason() -> None:
    assert energies(counted(1.0, 1.0), ())[1] == ("energy needs 3 windows with inferences in each: watch longer",)
    silent = [Window((Snapshot(0.0), Snapshot(1.0)), 5)] * 3
    found, notes = energies(silent, ())
    assert not found and "no sensor" in notes[0]
    still, notes = energies(counted(0.0, 0.0, 0.0), ())
    assert not still and "did not move" in notes[0]
    gap = counted(1.0, 1.0, 1.0)
    gap[1] = Window((gap[1].snapshots[0], Snapshot(2.0)), 5)
    found, notes = energies(gap, ())
    assert not found and "did not answer" in notes[0]


# -- watching ---------------------------------------------------------------------------------------------------


def test_a_watch_reads_a_fake_machine(tmp_path) -> None:
    root = write(tmp_path, RAPL | THERMAL)
    counter = root / "sys/class/powercap/intel-rapl:0/energy_uj"
    x = TensorSpec("x", (1,), "float32")

    def run(feeds: Any) -> Any:
        temporary = counter.with_name("next")
        temporary.write_text(str(int(counter.read_text()) + 1000))  # a millijoule each
        temporary.replace(counter)
        return {"y": feeds["x"]}

    session = FunctionSession(run, (x,), (TensorSpec("y", (1,), "float32"),))
    seen = watch(
        session, [{"x": np.zeros(1, np.float32)}], 1.0, monitor=Monitor((RaplSource(root), ThermalSource(root)))
    )
    package = next(one for one in seen.energy if one.of == "package-0")
    assert package.inferences == seen.runs and 0.0005 < package.joules < 0.0015
    assert package.idle_watts == 0.0 and package.above_idle_joules == package.joules
    assert {one.metric for one in seen.figures} >= {"temperature_celsius", "thermal_throttles", "clock_hertz"}
    assert any("package-0/core" in note for note in seen.notes), "a counter that stands still gives no energy"
    assert seen.first_ms.p50 > 0 and seen.last_ms.p50 > 0


def test_nothing_to_watch_is_refused() -> None:
    session = FunctionSession(lambda feeds: feeds, (), ())
    with pytest.raises(UsageError, match="nothing to watch"):
        watch(session, [], 1.0)


def test_the_command_shows_sources_and_what_is_absent(artifacts, capfd) -> None:
    from deploykit.cli import main

    assert main(["profile", str(artifacts.words), "--watch", "1", "--threads", "1", "--json"]) == 0
    seen = json.loads(capfd.readouterr().out)["watch"]
    assert seen["runs"] > 0 and all(one["source"] for one in seen["figures"])
    assert {"process_cpu_seconds", "process_resident_bytes"} <= {one["metric"] for one in seen["figures"]}
    assert seen["energy"] or seen["notes"]
    assert main(["profile", str(artifacts.words), "--watch", "1", "--threads", "1"]) == 0
    assert "Sensors" in capfd.readouterr().out
    assert main(["profile", str(artifacts.words), "--watch", "1", "--save"]) == 2
