"""From a conversion's files in a staging folder to a complete artifact: draft, golden data, verdict, records."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from deploykit._version import __version__
from deploykit.artifact import manifest as layout
from deploykit.artifact.golden import Golden, golden_bytes
from deploykit.artifact.manifest import CalibrationInfo, FileEntry, Manifest
from deploykit.artifact.storage import sha256_of, write_file
from deploykit.contract.errors import ConversionError
from deploykit.contract.precision import Precision
from deploykit.judge.parity import ParityReport
from deploykit.judge.profiling import Profile
from deploykit.places.first import trust
from deploykit.plugin.artifact import Artifact
from deploykit.plugin.registry import Resolved
from deploykit.plugin.target import Conversion, ConversionJob, Target

_GOLDEN_SAMPLES = 2


def draft(
    resolved: Resolved, job: ConversionJob, conversion: Conversion, *, calibration: CalibrationInfo | None
) -> Artifact:
    """Describe the converted files as an artifact that has not been run yet.

    Raises:
        ConversionError: the converter left no entry file.
    """
    if not (job.folder / conversion.entry).is_file():
        raise ConversionError(
            f"{resolved.target.name} produced no {conversion.entry}", hint=conversion.log[-2000:] or None
        )
    options = msgspec.to_builtins(job.options)
    files = list_files(job.folder)
    needs = conversion.requirements or resolved.target.requirements(job.device, job.precision)
    manifest = Manifest(
        deploykit_version=__version__,
        target=resolved.typed,
        toolchain=resolved.target.name,
        device=resolved.device.name,
        precision=job.precision,
        status=layout.NEEDS_DEVICE_BUILD if conversion.build else layout.VERIFIED,
        entry=conversion.entry,
        inputs=job.captured.inputs,
        outputs=job.captured.outputs,
        files=files,
        achieved=conversion.achieved,
        tool_versions=conversion.tool_versions,
        fingerprints=_fingerprints(resolved, job, options, calibration),
        calibration=calibration,
        build=conversion.build,
        requirements=replace(needs, memory_bytes=sum(entry.size for entry in files)),
        options=options,
        metadata=conversion.metadata,
    )
    artifact = Artifact(job.folder, manifest)
    trust(artifact, resolved.target.risk(artifact))
    return artifact


def _fingerprints(
    resolved: Resolved, job: ConversionJob, options: object, calibration: CalibrationInfo | None
) -> dict[str, str]:
    recipe = {
        "target": f"{resolved.device.name}:{resolved.target.name}",
        "precision": job.precision.value,
        "method": job.method,
        "include": job.include,
        "exclude": job.exclude,
        "options": options,
        "deploykit": __version__,
    }
    found = {
        "model": job.captured.fingerprint,
        "recipe": hashlib.sha256(msgspec.json.encode(recipe, order="sorted")).hexdigest(),
    }
    return found if calibration is None else {**found, "calibration": calibration.fingerprint}


def list_files(folder: Path) -> tuple[FileEntry, ...]:
    """Size and hash of every payload file, sorted by path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in layout.RECORD_NAMES)
    return tuple(FileEntry(p.relative_to(folder).as_posix(), p.stat().st_size, sha256_of(p)) for p in paths)


def make_golden(artifact: Artifact, samples: Sequence[dict[str, np.ndarray]], target: Target) -> Artifact:
    """Run the first samples through the artifact, and keep inputs and outputs so that any device can test itself."""
    inputs = tuple(dict(feeds) for feeds in samples[:_GOLDEN_SAMPLES])
    with target.open_for_parity(artifact) as session:
        outputs = tuple({name: array.copy() for name, array in session.run(feeds).items()} for feeds in inputs)
    write_file(artifact.path / layout.GOLDEN_NAME, golden_bytes(Golden(inputs, outputs)))
    manifest = replace(artifact.manifest, files=list_files(artifact.path))
    return _with_manifest(artifact, manifest)


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
    write_file(artifact.path / layout.MANIFEST_NAME, manifest.to_json())
    return Artifact(artifact.path, manifest)


@contextlib.contextmanager
def baseline_artifact(resolved: Resolved, job: ConversionJob, artifact: Artifact) -> Iterator[Artifact]:
    """Convert the same model in float32, for the time of a measurement."""
    with tempfile.TemporaryDirectory(prefix="deploykit-baseline-") as folder:
        float_job = replace(job, precision=Precision.FP32, table=None, folder=Path(folder), is_baseline=True)
        conversion = resolved.target.convert(float_job)
        yield draft(resolved, float_job, conversion, calibration=None)
