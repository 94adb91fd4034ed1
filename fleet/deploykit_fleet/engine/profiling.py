"""Profiles of finished artifacts, measured alone and after the exports; a record beside the manifest, not identity."""

from __future__ import annotations

import traceback
from dataclasses import replace
from pathlib import Path

import msgspec

from deploykit.contract.errors import DeploykitError
from deploykit_fleet.engine.exporting import mark, report
from deploykit_fleet.engine.jobs import CellJob, Job
from deploykit_fleet.store import Finished, Store


def run(job: Job) -> None:
    """Measure the artifacts of a job one after another; one that cannot be measured says why; that is no failure."""
    store = Store(Path(job.store))
    for cell in job.cells:
        mark(job, cell.key)
        found = store.finished(cell.key)
        if found is None:
            continue
        try:
            _measure(store, found, cell)
            outcome = "done"
        except DeploykitError as error:
            outcome = error.message
        except Exception as error:
            traceback.print_exc()
            outcome = f"unexpected {type(error).__name__}: {error}"
        store.finish(msgspec.structs.replace(found, profile=outcome))
        report(job, found.cell)


def _measure(store: Store, found: Finished, cell: CellJob) -> None:
    from deploykit.contract.precision import Evidence
    from deploykit.judge.slower import explained
    from deploykit.plugin.artifact import load

    artifact = load(store.object(found.cell.fingerprint))
    if artifact.profile is not None:
        return
    plugin = artifact.plugin()
    device = plugin.capabilities().devices.get(artifact.manifest.device)
    if plugin.evidence(artifact) is Evidence.EMULATOR and (device is None or not device.peak_tops):
        raise DeploykitError("only emulated here, and its device has no published rates to estimate from")
    baseline = ("fp32 artifact", load(store.object(cell.baseline))) if cell.baseline else None
    measured = plugin.profile(artifact, baseline=baseline)
    artifact.save_profile(replace(measured, findings=explained(measured, artifact.achieved)))
