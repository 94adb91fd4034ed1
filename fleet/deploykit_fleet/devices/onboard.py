"""The end of the session protocol on a board: deploykit's server, and what only devices are asked for.

`CALL` carries `do`: `describe` (versions there), `profile` (the board's own profile of an artifact, and a sustained run
where it was asked for), `build` (finish an artifact, and give its files). A runtime's extra is enough for it.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np

from deploykit._version import __version__
from deploykit.contract.errors import UsageError
from deploykit.contract.optional import versions
from deploykit.judge.profiling import Effort, Profile
from deploykit.places import frames
from deploykit.places.frames import Frame
from deploykit.places.serve import Server, main_of
from deploykit.plugin.artifact import Artifact, load
from deploykit.plugin.registry import toolchains


class BoardServer(Server):
    """Answers requests of a client that has leased this board."""

    def _call(self, request: Frame) -> Frame:
        known = _CALLS.get(str(request.facts.get("do")))
        if known is None:
            message = f"a board is not asked to {request.facts.get('do')!r}"
            raise UsageError(message, hint="install the same version on both machines")
        return known(request.facts)

    _answers: ClassVar[dict[int, Callable[[Any, Frame], Frame]]] = {**Server._answers, frames.CALL: _call}


def describe(facts: Mapping[str, Any]) -> Frame:
    """Versions of Python, of deploykit and of what runs artifacts."""
    names = {one.project for plugin in toolchains().values() for one in plugin.capabilities().runtime_requires}
    runtimes = versions(*sorted(names))
    return Frame(frames.ANSWER, {"python": platform.python_version(), "deploykit": __version__, "runtimes": runtimes})


def profile(facts: Mapping[str, Any]) -> Frame:
    """The profile of the artifact at `path`, with `effort`; `sustained_s` above 0 runs it on for so long."""
    artifact = _artifact(facts)
    found = artifact.plugin().profile(artifact, effort=msgspec.convert(facts["effort"], Effort))
    if facts.get("sustained_s"):
        found = _sustained(artifact, found, float(facts["sustained_s"]))
    return Frame(frames.ANSWER, {"profile": msgspec.to_builtins(found)})


def _sustained(artifact: Artifact, found: Profile, seconds: float) -> Profile:
    from deploykit.judge.sustained import sustain

    with artifact.open(threads=found.threads) as session:
        return replace(found, sustained=sustain(session, artifact.golden().inputs[0], seconds))


def build(facts: Mapping[str, Any]) -> Frame:
    """The files of the artifact at `path`, finished here; what it misses is for the other side to judge."""
    from deploykit.pipeline.build import build as finish

    parent, output = _artifact(facts).path, Path(str(facts["output"])).expanduser()
    options, measure = facts.get("options"), bool(facts["profile"])
    built = finish(parent, output=output, options=options, profile=measure, strict=False, allow_native=True)
    files = {
        path.relative_to(built.path).as_posix(): np.fromfile(path, np.uint8)
        for path in sorted(built.path.rglob("*"))
        if path.is_file()
    }
    return Frame(frames.ANSWER, {"fingerprint": built.fingerprint}, files)


_CALLS: Mapping[str, Callable[[Mapping[str, Any]], Frame]] = {"describe": describe, "profile": profile, "build": build}


def _artifact(facts: Mapping[str, Any]) -> Artifact:
    """Whether its code may run was decided on the other side, which holds the account here."""
    return load(Path(str(facts["path"])).expanduser(), allow_native=True)


def main() -> None:
    """Serve until CLOSE, or until the other side has gone."""
    main_of(BoardServer())


if __name__ == "__main__":
    main()
