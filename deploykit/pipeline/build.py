"""`deploykit.build`: finish on the device what could only be prepared elsewhere.

load ─▶ build ─▶ run golden data ─▶ profile ─▶ gate ─▶ publish a built artifact that remembers its parent
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from deploykit.artifact import manifest as layout
from deploykit.artifact.golden import golden_tolerance
from deploykit.artifact.made import MADE_HERE
from deploykit.artifact.replace import check_replaceable, failed_path, replaceable
from deploykit.artifact.storage import publish_folder, staging_folder
from deploykit.contract.errors import ArtifactError, ParityError, UsageError
from deploykit.contract.host import this_host
from deploykit.contract.precision import Evidence
from deploykit.contract.session import FunctionSession
from deploykit.judge.parity import Link, ParityReport, Stage, compare_chain, failures_of
from deploykit.pipeline.gates import Gates, Miss
from deploykit.pipeline.staging import finish, list_files, recorded
from deploykit.plugin.artifact import Artifact, load
from deploykit.plugin.target import Payload, Target

_NOTE = "compared with the golden outputs; how far those are from the float model, the earlier links of the chain say"
_BOARD = "built on a board that the caller named"
_UNKNOWN = "unknown"  # what targets call the precision of layers that the builder does not tell of


def build(
    path: str | Path,
    *,
    key: str | Path | None = None,
    allow_native: bool = False,
    output: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    profile: bool = True,
    strict: bool = True,
) -> Artifact:
    """Build an artifact on its device, prove it on the golden data, profile it, and publish it.

    Args:
        path: an artifact whose status is `needs device build`. It is left as it is.
        key, allow_native: as for `deploykit.load`: the build program that an artifact from elsewhere holds runs only
            where it is that of this deploykit, the artifact is signed, or the caller allows it.
        output: folder of the built artifact; default `<path>-built`.
        options: the options of the toolchain, over those that the artifact was exported with.
        profile: measure latency, throughput and memory.
        strict: raise when the golden outputs are not reproduced, or when less runs in the precision than was asked for
            on export (`min_placement`, or its default); False returns the artifact marked `failed`.
    Returns:
        The built artifact; its manifest's `parent` is the fingerprint of the one it was built from.
    Raises:
        UsageError: there is nothing to build, or an option is unknown or not for the device.
        ArtifactError: the artifact is damaged, or the output folder is something else.
        DeviceError, MissingDependencyError: no device, driver or vendor library here.
        ConversionError: the vendor's builder refused.
        ParityError: the device computes something else; `.candidate` is kept at `<output>.failed`.
        PlacementError: the vendor's builder left too much in another precision; likewise.
    """
    parent = load(path, key=key, allow_native=allow_native)
    if parent.manifest.build is None:
        raise UsageError(f"{parent.path.name} needs no build; its status is {parent.status!r}", hint="open it as it is")
    target = parent.plugin()
    kept = replaceable(parent.path.with_name(f"{parent.path.name}-built") if output is None else output)
    if kept == parent.path:
        raise UsageError(f"{kept} is the artifact to build, which is left as it is", hint="choose another output=")
    with staging_folder(kept, check_replaceable) as folder:
        artifact, log = _built(parent, target, folder, options)
        report = _parity(parent, artifact, target)
        measured = target.profile(artifact) if profile else None
        misses = misses_of(artifact, report)
        finish(artifact, report, measured, failed=bool(misses), log=log)
        if strict and misses:
            kept = failed_path(kept)
        publish_folder(folder, kept, check_replaceable)
    published = load(kept)
    if strict and misses:
        raise misses[0].error(published)
    return published


def adopt(
    parent: Artifact, files: Mapping[str, bytes], *, output: str | Path | None = None, strict: bool = True
) -> Artifact:
    """Publish an artifact that another machine has built (without `strict`) from one of here.

    Args:
        parent: it was built from.
        files: the files of its folder, by name.
        output, strict: see `build`.
    Returns:
        The built artifact.
    Raises:
        ArtifactError: it is none, or one of another parent; or the output folder is something else.
        ParityError, PlacementError: see `build`.
    """
    kept = replaceable(parent.path.with_name(f"{parent.path.name}-built") if output is None else output)
    if kept == parent.path:
        raise UsageError(
            f"{kept} is the artifact that was built, which is left as it is", hint="choose another output="
        )
    with staging_folder(kept, check_replaceable) as folder:
        for name, data in files.items():
            layout.check_relative(name)
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        built = load(folder)
        if built.manifest.parity is None or not _is_of(built.manifest, parent):
            raise ArtifactError(f"what was built is not of {parent.path.name}", hint="build it again")
        misses = misses_of(built, built.manifest.parity)
        if strict and misses:
            kept = failed_path(kept)
        publish_folder(folder, kept, check_replaceable)
    published = load(kept)
    published.vouched = _BOARD  # of this object alone: from the folder its code runs with key= or allow_native=
    if strict and misses:
        raise misses[0].error(published)
    return published


def _is_of(built: layout.Manifest, parent: Artifact) -> bool:
    """Whether what came from a board is for the device of the artifact that it was built from, and names it."""
    of, own = (built.parent, built.toolchain, built.target, built.device), parent.manifest
    return of == (parent.fingerprint, own.toolchain, own.target, own.device)


def misses_of(artifact: Artifact, report: ParityReport) -> list[Miss]:
    """The gates that the built artifact misses: it is judged by what the vendor's builder made, not by what was asked.

    Layers that the builder does not tell are not held against it where nothing was asked for.
    """
    found: list[Miss] = []
    if not report.passed:
        message = f"the device computes something else than the reference: {'; '.join(report.failures)}"
        hint = "the device's library may choose kernels of lower precision; strict=False returns the candidate"
        found.append(Miss(message, lambda kept: ParityError(message, report=report, candidate=kept, hint=hint)))
    manifest = artifact.manifest
    if manifest.min_placement is None and manifest.achieved.macs.get(_UNKNOWN):
        return found
    gates = Gates(manifest.precision, min_placement=manifest.min_placement)
    return [*found, *gates.placement_misses(manifest.achieved)]


def _built(parent: Artifact, target: Target, folder: Path, options: Mapping[str, Any] | None) -> tuple[Artifact, str]:
    merged = target.parse_options({**parent.manifest.options, **(options or {})})
    target.check_options(merged, target.capabilities().devices[parent.manifest.device])
    payload: Payload = target.build(parent, folder, merged)
    shutil.copyfile(parent.path / layout.GOLDEN_NAME, folder / layout.GOLDEN_NAME)
    manifest = replace(
        parent.manifest,
        status=layout.VERIFIED,
        entry=payload.entry,
        files=list_files(folder),
        achieved=payload.achieved,
        tool_versions={**parent.manifest.tool_versions, **payload.tool_versions},
        options=msgspec.to_builtins(merged),
        build=None,
        requirements=payload.requirements or parent.manifest.requirements,
        parent=parent.fingerprint,
        metadata={**parent.manifest.metadata, **recorded(payload)},
    )
    return Artifact(folder, manifest, vouched=MADE_HERE), payload.log


def _parity(parent: Artifact, artifact: Artifact, target: Target) -> ParityReport:
    """The built artifact against the golden outputs that the reference runtime gave at export."""
    golden = artifact.golden()
    tolerance = golden_tolerance(artifact.manifest.precision, artifact.manifest.facts.golden_min_sqnr_db)
    recorded = iter(golden.outputs)
    reference = FunctionSession(lambda _: next(recorded), artifact.inputs, artifact.outputs)
    with target.open(artifact) as session:
        stages = (
            Stage("golden outputs", reference, Evidence.REFERENCE),
            Stage("artifact", session, target.evidence(artifact)),
        )
        chain, count = compare_chain(stages, golden.inputs)
    earlier: tuple[Link, ...] = parent.parity.chain if parent.parity else ()
    worst = chain[-1].worst
    failures = failures_of(chain[-1], tolerance)
    return ParityReport(
        passed=not failures,
        evidence=target.evidence(artifact),
        sqnr_db=worst.sqnr_db,
        cosine=worst.cosine,
        max_abs=worst.max_abs,
        top1_agreement=worst.top1_agreement,
        chain=(*earlier, *chain),
        layers=parent.parity.layers if parent.parity else (),
        failures=failures,
        tolerance=tolerance,
        samples=count,
        data="golden samples of the parent artifact",
        host=this_host(),
        notes=(_NOTE, *parent.manifest.facts.notes),
    )
