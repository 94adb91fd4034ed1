"""What a Ray task does: give a job to the worker of its process, and wait. Ray's own processes import no framework."""

from __future__ import annotations

import msgspec

from deploykit_fleet.engine.child import Children, Seat
from deploykit_fleet.engine.jobs import Job

_seats: dict[str, Seat] = {}
"""The worker that this process of Ray has, by the mark of its release; it dies with this process."""


def attempt(job: bytes, mark: str) -> int:
    """Do a job; returns 0, or the exit code of the process that died at it."""
    seat = _seats.setdefault(mark, Children(mark).seat())
    return seat.run(msgspec.json.decode(job, type=Job))
