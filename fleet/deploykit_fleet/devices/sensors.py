"""What a board tells of its temperature, clock and throttling, read once a second while it works.

It is read by the shell there, so that boards without Python tell it, too, and in a process beside the one that is
measured. Sources are Linux's: thermal zones, cpufreq, cooling devices, the throttle counters of Intel's processors, the
firmware of a Raspberry Pi. One that a board does not have is named as absent; it is never a zero.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from deploykit.judge.conditions import Conditions, Reading

TEMPERATURE, CLOCK, THROTTLING = "temperature", "clock", "throttling"
_MOST_ZONES = 64


@dataclass(frozen=True)
class Sources:
    """Where a board tells it.

    Attributes:
        sysfs: where its sysfs is mounted.
    """

    sysfs: str = "/sys"


# A line is: seconds since boot, kind, name, number in the kernel's own unit.
_READ = """
first() {{ v=; [ -r "$1" ] && {{ read -r v < "$1" || :; }} 2>/dev/null; [ -n "$v" ]; }}
tell() {{ first "$3" && echo "$t $1 $2 $v"; }}
named() {{ first "$2/type" && echo "$1-$v" | tr ' ' _; }}
look() {{ t=$(cut -d' ' -f1 /proc/uptime 2>/dev/null || date +%s); echo "$t look at 1"
  for z in {sysfs}/class/thermal/thermal_zone*; do
    k=$(named "${{z##*zone}}" "$z") && tell temp "$k" "$z/temp"; done
  for c in {sysfs}/devices/system/cpu/cpu[0-9]*; do n=${{c##*/}}
    tell clock "$n" "$c/cpufreq/scaling_cur_freq"; tell most "$n" "$c/cpufreq/cpuinfo_max_freq"
    tell count "$n" "$c/thermal_throttle/core_throttle_count"; done
  for d in {sysfs}/class/thermal/cooling_device*; do
    k=$(named "${{d##*device}}" "$d") && tell cooling "$k" "$d/cur_state"; done
  command -v vcgencmd >/dev/null && echo "$t firmware pi $(vcgencmd get_throttled | cut -d= -f2)"; :; }} 2>/dev/null
"""
_SAMPLE = """{read}
( while :; do look; sleep 1; done ) > "$1/sensors" & sampler=$!
"""


def looking(sources: Sources) -> str:
    """The script that reads all sources once, with `look`."""
    return _READ.format(sysfs=shlex.quote(sources.sysfs))


def sampling(sources: Sources) -> str:
    """The script that begins to read them into the file `sensors` of the folder `$1`; `$sampler` is its process."""
    return _SAMPLE.format(read=looking(sources))


def conditions(text: str) -> Conditions:
    """What was read, as figures.

    Args:
        text: of the file `sensors`; lines that are none are passed over.
    """
    rows = list(_rows(text))
    degrees = tuple(_series(rows, "temp", 1e-3))
    clocks = tuple(_series(rows, "clock", 1e-3))
    most = {name: value * 1e-3 for _, kind, name, value in rows if kind == "most"}
    told = any(kind in ("count", "cooling", "firmware") for _, kind, _, _ in rows)
    absent = [name for name, there in ((TEMPERATURE, degrees), (CLOCK, clocks), (THROTTLING, told)) if not there]
    throttled = tuple(_throttled(rows)) if told else ()
    return Conditions(degrees, clocks, most, throttled, tuple(absent), len({at for at, *_ in rows}))


def _rows(text: str) -> Iterator[tuple[float, str, str, float]]:
    for line in text.splitlines():
        words = line.split()
        try:
            at, kind, name, value = float(words[0]), words[1], words[2], float(int(words[3], 0))
        except (IndexError, ValueError):
            continue
        yield at, kind, name, value


def _series(rows: list[tuple[float, str, str, float]], kind: str, unit: float) -> Iterator[Reading]:
    names = list(dict.fromkeys(name for _, own, name, _ in rows if own == kind))
    for name in names[:_MOST_ZONES]:
        values = [value * unit for _, own, other, value in rows if own == kind and other == name]
        yield Reading(name, values[0], values[-1], min(values), max(values))


def _throttled(rows: list[tuple[float, str, str, float]]) -> Iterator[str]:
    """What shows that the board slowed itself down, in words; nothing where nothing does."""
    for kind, said in (("count", "its count of throttling went up by {0:g}"), ("cooling", "it was at state {1:g}")):
        for name in dict.fromkeys(name for _, own, name, _ in rows if own == kind):
            values = [value for _, own, other, value in rows if own == kind and other == name]
            grown, top = values[-1] - values[0], max(values)
            if grown > 0 if kind == "count" else (top > 0 and _slows(name)):
                yield f"{name}: {said.format(grown, top)}"
    now = [int(value) & 0xF for _, own, _, value in rows if own == "firmware"]
    for bit, what in ((1, "under-voltage"), (2, "clock capped"), (4, "throttled"), (8, "soft temperature limit")):
        if any(value & bit for value in now):
            yield f"firmware: {what}"


def _slows(name: str) -> bool:
    """Whether a cooling device works by slowing a processor down, as fans do not."""
    return any(word in name.lower() for word in ("cpu", "processor", "gpu", "devfreq"))
