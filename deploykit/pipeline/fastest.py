"""`target="device:fastest"`: export with every toolchain of a device, measure the artifacts in turns, keep the fastest.

Only what passes the gates of the export can win, and only what is measured on the device itself is compared: on a
machine that is not the device this is refused. The losers' figures stay beside the winner in `choice.json`, a record.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import msgspec

from deploykit.artifact.choice import Candidate, Choice
from deploykit.artifact.manifest import CHOICE_NAME, VERIFIED
from deploykit.artifact.replace import check_replaceable, replaceable
from deploykit.artifact.storage import publish_folder, staging_folder, write_file
from deploykit.contract.errors import (
    ConversionError,
    DeploykitError,
    DeviceError,
    MissingDependencyError,
    UnknownTargetError,
    UnsupportedPrecisionError,
)
from deploykit.contract.host import ARCHITECTURES, this_host
from deploykit.contract.precision import Evidence, Precision
from deploykit.contract.session import Session
from deploykit.contract.tensors import Feeds
from deploykit.judge.profiling import DEFAULT_EFFORT, Percentiles, measure_interleaved
from deploykit.pipeline.attempts import CrashError, attempt, raise_common
from deploykit.pipeline.plan import default_output, precision_of
from deploykit.plugin.artifact import Artifact, load
from deploykit.plugin.registry import FASTEST, Resolved, resolve, toolchains

SUFFIX = f":{FASTEST}"


def export_fastest(export: Callable[..., Artifact], request: Mapping[str, Any]) -> Artifact:
    """Export with each installed toolchain of the device, and publish the fastest artifact that passes its gates.

    Args:
        export: `deploykit.export`.
        request: its arguments by name; `target` ends with `:fastest`.
    Raises:
        UnknownTargetError: no toolchain has that device.
        UsageError, UnsupportedPrecisionError: there is no such precision, or no toolchain of the device has it.
        MissingDependencyError: none that has it, in the precision, is installed.
        DeviceError: this machine is not the device, so that nothing can be measured.
        ConversionError: no artifact passes; the message has the reason of each.
    """
    device, precision = request["target"].removesuffix(SUFFIX), precision_of(request["precision"])
    offers, missing = _installed(device, precision)
    chosen = request["output"]
    output = replaceable(default_output(request["model"], request["target"], precision) if chosen is None else chosen)
    with (
        staging_folder(output, check_replaceable) as staging,
        tempfile.TemporaryDirectory(prefix="deploykit-fastest-") as cache,
    ):
        shared = {**request, "calibration": kept(request["calibration"]), "cache_dir": request["cache_dir"] or cache}
        made: dict[str, Artifact | DeploykitError] = {
            offer.typed: attempt(
                export, **{**shared, "target": offer.typed, "output": staging / offer.target.name, "strict": False}
            )
            for offer in offers
        }
        made.update(missing)
        passing = {name: found for name, found in made.items() if isinstance(found, Artifact) and passes(found)}
        if not passing:
            raise_common(found for name, found in made.items() if name not in missing)
            reasons = "; ".join(f"{name}: {described(name, found).reason}" for name, found in made.items())
            raise ConversionError(
                f"no toolchain of {device} makes an artifact that passes: {reasons}",
                hint="export with one of them to see its report and its hint",
            )
        choice = measured(_of_the_device(passing), made)
        winner = passing[choice.winner]
        data = msgspec.json.format(msgspec.json.encode(choice), indent=2) + b"\n"
        write_file(winner.path / CHOICE_NAME, data)
        publish_folder(winner.path, output, check_replaceable)
    return load(output)


def _installed(device: str, precision: str) -> tuple[list[Resolved], dict[str, DeploykitError]]:
    """The toolchains to try, those that measure on this machine only; and what the others lack."""
    serving = [name for name, plugin in toolchains().items() if device in plugin.capabilities().devices]
    if not serving:
        resolve(device)  # raises with near names
        raise UnknownTargetError(f"no toolchain has the device {device!r}")
    all_of = [resolve(f"{device}:{name}") for name in serving]
    having = _of_this_architecture(device, [offer for offer in all_of if _has(offer, precision)])
    missing: dict[str, DeploykitError] = {}
    offers: list[Resolved] = []
    for offer in having:
        try:
            offer.target.check_installed(export=True)
            offer.target.check_installed(export=False)
            offers.append(offer)
        except MissingDependencyError as error:
            missing[offer.typed] = error
    if not offers and missing:
        raise next(iter(missing.values()))
    if not offers:
        have = [name for name in Precision if any(_has(offer, name) for offer in all_of)]
        raise UnsupportedPrecisionError(
            f"no toolchain of {device} has {precision}; there are {', '.join(serving)}",
            hint=f"one of {', '.join(have)}",
        )
    return offers, missing


def _has(offer: Resolved, precision: str) -> bool:
    """Whether both the toolchain and the silicon have a precision."""
    return precision in offer.target.capabilities().precisions and precision in offer.device.precisions


def _of_this_architecture(device: str, having: list[Resolved]) -> list[Resolved]:
    """Refused before minutes are spent on what only an emulator would run."""
    family = this_host().family
    same = [offer for offer in having if offer.device.arch not in ARCHITECTURES or offer.device.arch == family]
    if having and not same:
        wanted = " or ".join(dict.fromkeys(offer.device.arch for offer in having))
        raise DeviceError(
            f"{device} is {wanted} and this machine is {family}: the fastest is found by measuring",
            hint=f"export on the device, or name the toolchain: {', '.join(offer.typed for offer in having)}",
        )
    return same


def kept(calibration: Any) -> Any:
    """Data that can be read once are read once, for every toolchain.

    Raises:
        CalibrationError: the iterator raised; the message says at which batch.
    """
    from deploykit.contract.calibration_data import guarded

    return list(guarded(lambda: calibration)) if isinstance(calibration, Iterator) else calibration


def passes(artifact: Artifact) -> bool:
    """Whether an artifact met its gates and needs no build."""
    return artifact.status == VERIFIED


def _of_the_device(passing: Mapping[str, Artifact]) -> Mapping[str, Artifact]:
    """Those that compute here as they do on their device, which alone can be compared."""
    found = {name: one for name, one in passing.items() if is_native(one)}
    if not found:
        raise DeviceError(
            f"{', '.join(passing)} does not run on this machine, and the fastest is found by measuring",
            hint="export on the device, or name the toolchain",
        )
    return found


def is_native(artifact: Artifact) -> bool:
    """Whether it computes here as on its device."""
    return artifact.plugin().evidence(artifact) is Evidence.DEVICE


def measured(passing: Mapping[str, Artifact], made: Mapping[str, Artifact | DeploykitError]) -> Choice:
    """Measure artifacts in turns, and rank them.

    Of two that are equally fast, the smaller one is the better.

    Args:
        passing: what is measured, by name; what does not open or run is a row like the others that cannot win.
        made: all that was tried, by name.
    Raises:
        DeviceError: none of them runs; the message has the reason of each.
    """
    rows, failed = [], dict[str, DeploykitError]()
    feeds = next(iter(passing.values())).golden().inputs[0]
    with ExitStack() as stack:
        sessions: dict[str, Session] = {}
        for name, artifact in passing.items():
            found = attempt(_started, artifact, feeds, stack)
            if isinstance(found, DeploykitError):
                failed[name] = found
            else:
                sessions[name] = found
        if not sessions:
            reasons = "; ".join(f"{name}: {why.message}" for name, why in failed.items())
            hint = "export with one of them by its name to see where"
            raise DeviceError(f"nothing that was made runs here: {reasons}", hint=hint)
        times, _ = measure_interleaved(list(sessions.values()), feeds, DEFAULT_EFFORT)
        threads = next(iter(sessions.values())).threads
    latency = dict(zip(sessions, map(Percentiles.of, times), strict=True))
    for name, one in made.items():
        row = replace(described(name, one), latency_ms=latency.get(name))
        if name in failed:
            row = replace(row, status="failed", reason=f"it does not run: {failed[name].message}")
        rows.append(row)
    rows.sort(key=_rank)
    return Choice(rows[0].target, threads, tuple(rows))


def _started(artifact: Artifact, feeds: Feeds, stack: ExitStack) -> Session:
    """A session that has run once, closed with the stack."""
    session = stack.enter_context(artifact.open())
    session.run(feeds)
    return session


def _rank(row: Candidate) -> tuple[float, float]:
    latency = row.latency_ms.p50 if row.latency_ms else float("inf")
    return latency, float("inf") if row.size_bytes is None else row.size_bytes


def _unplaced(artifact: Artifact) -> str:
    """Why an artifact that missed no gate of parity failed, as far as it can be told afterwards."""
    share, speed = artifact.achieved.as_asked_fraction, artifact.profile.worth_it if artifact.profile else None
    told = f", {speed:.2f} x as fast as the float build" if speed is not None else ""
    placed = f"{share:.1%} of multiply-accumulates are in {artifact.manifest.precision}"
    return f"it missed a placement or performance gate: {placed}{told}"


def described(name: str, found: Artifact | DeploykitError) -> Candidate:
    """A row of the table, without latency."""
    if isinstance(found, MissingDependencyError):
        return Candidate(name, "not installed", reason=found.hint or str(found))
    if isinstance(found, CrashError):
        return Candidate(name, "crashed", reason=str(found).splitlines()[0])
    if isinstance(found, DeploykitError):
        return Candidate(name, "refused", reason=str(found).splitlines()[0])
    parity = found.parity
    failures: Sequence[str] = parity.failures if parity else ()
    if passes(found) and not is_native(found):
        reason = "; ".join(("it computes otherwise here than on its device", *found.preflight().adapted))
        return Candidate(name, found.status, parity.sqnr_db if parity else None, found.size_bytes, reason=reason)
    reason = "" if passes(found) else "; ".join(failures) or _unplaced(found)
    return Candidate(name, found.status, parity.sqnr_db if parity else None, found.size_bytes, reason=reason)
