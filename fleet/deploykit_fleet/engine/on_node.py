"""What a Ray task does: start a worker on its node, and wait for it. Ray's own process imports no framework."""

from __future__ import annotations

import msgspec

from deploykit_fleet.engine.child import Children
from deploykit_fleet.engine.jobs import Job


def attempt(job: bytes, mark: str) -> int:
    """Do a job in a process of its own, which dies with this one; returns its exit code."""
    return Children(mark).run(msgspec.json.decode(job, type=Job))
