"""From a conversion's files in a staging folder to a complete artifact: draft, golden data, verdict, records."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from deploykit._version import __version__
from deploykit.artifact import made
from deploykit.artifact import manifest as layout
from deploykit.artifact.golden import Golden, golden_bytes
from deploykit.artifact.manifest import CalibrationInfo, FileEntry, Manifest
from deploykit.artifact.storage import sha256_of, write_file
from deploykit.contract.errors import ConversionError
from deploykit.contract.precision import Precision
from deploykit.contract.session import Session
from deploykit.judge.parity import ParityReport
from deploykit.judge.profiling import Profile
from deploykit.places.first import trust
from deploykit.plugin.artifact import Artifact
from deploykit.plugin.target import Payload, Target

if TYPE_CHECKING:
    from deploykit.contract.recipe import Recipe, TriedStep
    from deploykit_calibration.observe import CalibrationRun
    from deploykit_calibration.prepared import Prepared

_GOLDEN_SAMPLES = 2


def draft(
    target: Target,
    prepared: Prepared,
    payload: Payload,
    folder: Path,
    *,
    calibration: CalibrationInfo | None,
    min_placement: float | None = None,
) -> Artifact:
    """Describe the payload files as an artifact that has not been run yet.

    Args:
        min_placement: the share that was asked for, which a later build is held to.
    Raises:
        ConversionError: the converter left no entry file.
    """
    from deploykit_calibration.recipes import recipe_notes, recipe_of

    if not (folder / payload.entry).is_file():
        raise ConversionError(f"{target.name} produced no {payload.entry}", hint=payload.log[-2000:] or None)
    request, captured, recipe = prepared.request, prepared.captured, recipe_of(prepared)
    files = tuple(each for each in list_files(folder) if each.path != layout.GOLDEN_NAME)
    needs = payload.requirements or target.requirements(request.device, request.precision)
    manifest = Manifest(
        deploykit_version=__version__,
        target=request.target,
        toolchain=request.toolchain,
        device=request.device.name,
        precision=request.precision,
        status=layout.NEEDS_DEVICE_BUILD if payload.build else layout.VERIFIED,
        entry=payload.entry,
        inputs=captured.inputs,
        outputs=captured.outputs,
        files=files,
        achieved=replace(payload.achieved, float_activations=prepared.float_activations),
        tool_versions=payload.tool_versions,
        fingerprints=_fingerprints(recipe, prepared.reference.fingerprint, calibration),
        calibration=calibration,
        build=payload.build,
        min_placement=min_placement if payload.build else None,
        requirements=replace(needs, memory_bytes=sum(entry.size for entry in files)),
        options=msgspec.to_builtins(request.options),
        metadata=recorded(replace(payload, notes=(*payload.notes, *recipe_notes(prepared, recipe)))),
        recipe=recipe,
    )
    artifact = Artifact(folder, manifest, vouched=made.MADE_HERE)
    trust(artifact, target.risk(artifact))
    return artifact


def calibration_info(run: CalibrationRun | None, prepared: Prepared) -> CalibrationInfo | None:
    """Where the activation ranges came from; None where there are none."""
    if run is None or prepared.table is None:
        return None
    table = run.table
    return CalibrationInfo(table.source, table.samples, prepared.method, table.data_fingerprint, len(run.held_out))


def recorded(payload: Payload) -> dict[str, Any]:
    """The facts of a payload as the manifest's metadata; `manifest.Facts` reads those that are not the toolchain's."""
    facts: dict[str, Any] = dict(payload.metadata)
    if payload.traffic:
        facts["traffic"] = {name: list(counts) for name, counts in payload.traffic.items()}
    if payload.golden_min_sqnr_db is not None:
        facts["golden_min_sqnr_db"] = payload.golden_min_sqnr_db
    if payload.notes:
        facts["notes"] = list(payload.notes)
    return facts


def _fingerprints(recipe: Recipe, model: str, calibration: CalibrationInfo | None) -> dict[str, str]:
    found = {"model": model, "recipe": recipe.fingerprint}
    return found if calibration is None else {**found, "calibration": calibration.fingerprint}


def list_files(folder: Path) -> tuple[FileEntry, ...]:
    """Size and hash of every payload file, sorted by path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in layout.RECORD_NAMES)
    return tuple(_listed(folder, path) for path in paths)


def _listed(folder: Path, path: Path) -> FileEntry:
    return FileEntry(path.relative_to(folder).as_posix(), path.stat().st_size, sha256_of(path))


def make_golden(artifact: Artifact, samples: Sequence[dict[str, np.ndarray]], session: Session) -> Artifact:
    """Run the first samples through the artifact, and keep inputs and outputs so that any device can test itself."""
    inputs = tuple(dict(feeds) for feeds in samples[:_GOLDEN_SAMPLES])
    outputs = tuple({name: array.copy() for name, array in session.run(feeds).items()} for feeds in inputs)
    path = artifact.path / layout.GOLDEN_NAME
    write_file(path, golden_bytes(Golden(inputs, outputs)))
    files = (*artifact.manifest.files, _listed(artifact.path, path))
    manifest = replace(artifact.manifest, files=tuple(sorted(files, key=lambda each: each.path)))
    return Artifact(artifact.path, manifest, vouched=artifact.vouched)


def with_verdict(artifact: Artifact, report: ParityReport) -> Artifact:
    """Write the manifest with the report in it; where parity was missed, the artifact is `failed` from then on."""
    status = artifact.manifest.status if report.passed else layout.FAILED
    return _with_manifest(artifact, replace(artifact.manifest, parity=report, status=status))


def with_ladder(artifact: Artifact, ladder: Sequence[TriedStep]) -> Artifact:
    """Write into a finished artifact's recipe what was tried to find it; its profile stays its profile."""
    recipe, profile = artifact.manifest.recipe, artifact.profile
    assert recipe is not None
    recipe = replace(recipe, ladder=tuple(ladder))
    fingerprints = {**artifact.manifest.fingerprints, "recipe": recipe.fingerprint}
    artifact = _with_manifest(artifact, replace(artifact.manifest, recipe=recipe, fingerprints=fingerprints))
    if profile is not None:
        artifact.save_profile(profile)
    return artifact


def finish(artifact: Artifact, report: ParityReport, profile: Profile | None, *, failed: bool, log: str) -> Artifact:
    """Write verdict and records; the folder is then complete and can be published."""
    status = layout.FAILED if failed else artifact.manifest.status
    artifact = _with_manifest(artifact, replace(artifact.manifest, parity=report, status=status))
    if profile is not None:
        artifact.save_profile(profile)
    if log:
        write_file(artifact.path / layout.LOG_NAME, log.encode())
    return artifact


def _with_manifest(artifact: Artifact, manifest: Manifest) -> Artifact:
    data = manifest.to_json()
    write_file(artifact.path / layout.MANIFEST_NAME, data)
    made.remember(data)
    return Artifact(artifact.path, manifest, vouched=artifact.vouched)


@contextlib.contextmanager
def baseline_artifact(target: Target, prepared: Prepared) -> Iterator[Artifact]:
    """Lower the same model in float32, for the time of a measurement."""
    from deploykit_calibration.prepare import prepare

    request = replace(prepared.request, precision=Precision.FP32, algorithms=(), recipe=None)
    scheme = target.scheme(request, prepared.captured)
    floating = prepare(request, prepared.captured, scheme, samples=prepared.samples, is_baseline=True)
    with tempfile.TemporaryDirectory(prefix="deploykit-baseline-") as name:
        folder = Path(name)
        yield draft(target, floating, target.lower(floating, folder), folder, calibration=None)
