"""`deploykit verify`: does this artifact still compute, on this machine, what it computed where it was made?"""

from __future__ import annotations

from deploykit.cli.output import Answer
from deploykit.cli.parameters import ArtifactPath, Board, Debug, Json, load_on


def verify(artifact: ArtifactPath, board: Board = None, json: Json = False, debug: Debug = False) -> Answer:
    """Check an artifact on this machine, or on a board.

    Every hash is checked, the golden inputs are run, and the results compared with the golden outputs.
    Native code that the artifact holds (tvm, aotinductor, built engines) is run: open only what you trust.
    """
    from deploykit.artifact.golden import golden_tolerance
    from deploykit.cli import figures
    from deploykit.cli.tables import pairs
    from deploykit.pipeline.progress import Steps

    steps = Steps()
    with steps.step("checking hashes"):
        found = load_on(artifact, board)
    with steps.step("running golden data"):
        metrics = found.verify()
        samples = len(found.golden().inputs)
    files = len(found.manifest.files)
    tolerance = golden_tolerance(found.manifest.precision, found.manifest.facts.golden_min_sqnr_db)
    document = {
        "path": artifact,
        "verified": True,
        "files": files,
        "samples": samples,
        "metrics": metrics,
        "tolerance": tolerance,
        "fingerprint": found.fingerprint,
    }
    rows = [
        ("hashes", f"{files} files are as the manifest says"),
        ("golden data", f"{samples} samples give the same outputs here as where the artifact was made"),
        ("SQNR", f"{figures.decibel(metrics.sqnr_db)} (at least {figures.decibel(tolerance.min_sqnr_db)} is asked)"),
        ("cosine", figures.cosine(metrics.cosine)),
        ("max abs", figures.plain(metrics.max_abs)),
        ("top-1 agreement", figures.share(metrics.top1_agreement)),
    ]
    return Answer(document, [pairs("", rows)])
