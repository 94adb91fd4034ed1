"""NVIDIA GPUs through NVML: use, memory, power, energy, temperature, and why clocks are held back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deploykit_serving.monitor.reading import Absent, Found, Reading

_SOURCE = "nvml"
# Bits of nvmlClocksEventReasons (nvml.h) that hold the clocks below what was asked for.
_THROTTLES = {0x4: "power_cap", 0x8: "hardware", 0x20: "thermal", 0x40: "hardware_thermal", 0x80: "power_brake"}


class NvmlSource:
    """All NVIDIA GPUs of this machine.

    Args:
        library: the module `pynvml`, or what stands for it in a test; None imports it.
    """

    def __init__(self, library: Any = None) -> None:
        self._library = library
        self._absent: Absent | None = None
        try:
            if library is None:
                import pynvml

                self._library = pynvml
            self._library.nvmlInit()
        except ModuleNotFoundError:
            self._absent = Absent(_SOURCE, 'nvidia-ml-py is not installed: pip install "deploykit[serve]"')
        except Exception as error:  # pynvml makes its classes at run time
            self._absent = Absent(_SOURCE, f"{error}")

    def read(self) -> Found:
        """What each GPU tells."""
        if self._absent is not None:
            return (), (self._absent,)
        readings: list[Reading] = []
        absent: list[Absent] = []
        try:
            count = self._library.nvmlDeviceGetCount()
        except Exception as error:  # see above
            return (), (Absent(_SOURCE, f"{error}"),)
        for index in range(count):
            self._read_one(index, readings, absent)
        return tuple(readings), tuple(absent)

    def _read_one(self, index: int, readings: list[Reading], absent: list[Absent]) -> None:
        nvml, of = self._library, f"gpu{index}"
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
        except Exception as error:  # see above
            absent.append(Absent(f"{_SOURCE} {of}", f"{error}"))
            return
        asked: tuple[tuple[str, Callable[[], float], bool, str], ...] = (
            ("gpu_use_ratio", lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100, False,
             "Share of the last sample period in which a kernel ran"),
            ("gpu_memory_used_bytes", lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used, False, "Memory of the GPU"),
            ("power_watts", lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3, False, "Power now"),
            ("energy_joules", lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, True, "Energy so far"),
            ("temperature_celsius", lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU), False,
             "Temperature"),
        )  # fmt: skip
        for metric, ask, counts, help_text in asked:
            try:
                readings.append(Reading(metric, of, float(ask()), _SOURCE, counts=counts, help=help_text))
            except Exception as error:  # a GPU without that sensor
                absent.append(Absent(f"{_SOURCE} {of} {metric}", f"{error}"))
        self._read_throttles(handle, of, readings, absent)

    def _read_throttles(self, handle: Any, of: str, readings: list[Reading], absent: list[Absent]) -> None:
        nvml = self._library
        name = "nvmlDeviceGetCurrentClocksEventReasons"  # its name since driver 535
        ask = getattr(nvml, name, None) or nvml.nvmlDeviceGetCurrentClocksThrottleReasons
        try:
            reasons = int(ask(handle))
        except Exception as error:  # a GPU without that sensor
            absent.append(Absent(f"{_SOURCE} {of} throttled", f"{error}"))
            return
        for bit, why in _THROTTLES.items():
            help_text = "1 where clocks are held back now, by reason"
            readings.append(Reading("throttled", f"{of} {why}", float(bool(reasons & bit)), _SOURCE, help=help_text))
