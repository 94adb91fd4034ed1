"""Temperature, clock and throttling, from a sysfs of the test's own; what a board does not tell is named."""

from __future__ import annotations

import subprocess
from pathlib import Path

from deploykit_fleet.devices.sensors import Sources, conditions, looking


def put(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def look(root: Path) -> str:
    script = f"{looking(Sources(str(root)))}look"
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False).stdout


def test_nothing_is_told_and_nothing_is_zero(tmp_path: Path) -> None:
    found = conditions(look(tmp_path))
    assert found.absent == ("temperature", "clock", "throttling")
    assert found.rows() == [("not told", "temperature, clock, throttling")]


def test_what_linux_tells(tmp_path: Path) -> None:
    cpu = "devices/system/cpu/cpu0"
    put(
        tmp_path,
        {
            "class/thermal/thermal_zone0/type": "cpu-thermal",
            "class/thermal/thermal_zone0/temp": "48000",
            "class/thermal/thermal_zone1/type": "broken",
            "class/thermal/thermal_zone1/temp": "",
            "class/thermal/cooling_device0/type": "cpufreq-cpu0",
            "class/thermal/cooling_device0/cur_state": "0",
            "class/thermal/cooling_device1/type": "pwm-fan",
            "class/thermal/cooling_device1/cur_state": "3",
            f"{cpu}/cpufreq/scaling_cur_freq": "2400000",
            f"{cpu}/cpufreq/cpuinfo_max_freq": "2400000",
            f"{cpu}/thermal_throttle/core_throttle_count": "7",
        },
    )
    cool = look(tmp_path)
    put(
        tmp_path,
        {
            "class/thermal/thermal_zone0/temp": "85200",
            "class/thermal/cooling_device0/cur_state": "2",
            f"{cpu}/cpufreq/scaling_cur_freq": "1500000",
            f"{cpu}/thermal_throttle/core_throttle_count": "9",
        },
    )
    before, found = conditions(cool), conditions(cool + look(tmp_path))
    assert before.throttled == () and before.absent == () and len(before.temperature_c) == 1
    assert found.temperature_c[0].first == 48 and found.temperature_c[0].last == 85.2
    assert found.clock_mhz[0].minimum == 1500 and found.most_mhz == {"cpu0": 2400}
    assert found.throttled == (
        "cpu0: its count of throttling went up by 2",
        "0-cpufreq-cpu0: it was at state 2",
    )
    assert dict(found.rows())["temperature"] == "48 to 85 C (0-cpu-thermal, the hottest)"


def test_the_firmware_of_a_raspberry_pi() -> None:
    found = conditions("1.0 firmware pi 0x0\n2.0 firmware pi 0x50005\njunk\n3 temp x\n4 temp y z\n")
    assert found.throttled == ("firmware: under-voltage", "firmware: throttled")
    assert found.absent == ("temperature", "clock")
