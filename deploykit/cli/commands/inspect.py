"""`deploykit inspect`: what an artifact says about itself, as a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploykit.cli.output import Answer
from deploykit.cli.parameters import ArtifactPath, Debug, Json, Key
from deploykit.contract.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from deploykit.artifact.manifest import Manifest
    from deploykit.judge.parity import ParityReport
    from deploykit.plugin.artifact import Artifact

_LAYERS_SHOWN = 20
_WORST_SHOWN = 5
_RECORDED = 400  # characters of a recorded value


def inspect(
    artifact: ArtifactPath,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the recipe here, to edit it or to export with it again."),
    ] = None,
    key: Key = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Show what an artifact says about itself.

    Its status, achieved precision, parity, speed, origin, recipe and files; hashes are checked, and with --key the
    signature. Nothing of the artifact is run.
    """
    from deploykit.plugin.artifact import load

    found = load(artifact, key=key)
    if recipe is not None:
        _write_recipe(found, recipe)
    document = {**found.summary(), "path": artifact, "fingerprint": found.fingerprint}
    page = list(_page(artifact, found))
    if key is not None:
        from deploykit.cli.signatures import lineage_of, signature_rows
        from deploykit.cli.tables import pairs

        document["lineage"] = lineage_of(found, key)
        page.append(pairs("Signature", signature_rows(found, key)))
    return Answer(document, page)


def _write_recipe(found: Artifact, path: str) -> None:
    if found.recipe is None:
        hint = "export the model again with this version"
        raise UsageError(f"{found.path.name} has no recipe: an older deploykit made it", hint=hint)
    found.recipe.write(path)


def _page(name: str, found: Artifact) -> Iterator[RenderableType]:
    from deploykit.cli.commands.compare import choice_table
    from deploykit.cli.commands.profile import profile_page
    from deploykit.cli.recipes import recipe_page

    manifest = found.manifest
    yield _head(name, found)
    if manifest.build is not None:
        yield f"to build on the device: {manifest.build.command_for(PurePath(name))}\n  because {manifest.build.reason}"
    yield from _achieved(manifest)
    yield from _float_activations(found)
    yield _needs(found)
    if manifest.parity is not None:
        yield from _parity(manifest.parity)
    measured = found.profile
    if measured is not None:
        yield from profile_page(measured)
    if found.choice is not None:
        yield choice_table(found.choice)
    if found.recipe is not None:
        yield from recipe_page(found.recipe)
    yield _origin(manifest)
    yield _files(manifest)


def _head(name: str, found: Artifact) -> Table:
    from deploykit.cli.tables import pairs, status_text
    from deploykit.judge import figures

    manifest = found.manifest
    behind = f"{manifest.device} with {manifest.toolchain}"
    rows: list[tuple[str, Any]] = [
        ("artifact", name),
        ("status", status_text(manifest.status)),
        ("target", manifest.target if manifest.target == behind else f"{manifest.target} ({behind})"),
        ("precision", f"{manifest.precision} asked for; multiply-accumulates: {figures.achieved(manifest.achieved)}"),
        *(("input", str(spec)) for spec in manifest.inputs),
        *(("output", str(spec)) for spec in manifest.outputs),
        ("size", f"{figures.size(found.size_bytes)}, opened at {manifest.entry}"),
    ]
    return pairs("", rows)


def _needs(found: Artifact) -> Table:
    from deploykit.cli.tables import pairs
    from deploykit.judge import figures

    needs, here = found.requirements, found.preflight()
    rows = [*needs.rows(), ("memory", f"at least {figures.size(needs.memory_bytes)}")]
    return pairs("Needs", [*rows, ("met by this machine", here.verdict), ("this machine", str(here.host))])


def _achieved(manifest: Manifest) -> Iterator[RenderableType]:
    from deploykit.cli.tables import grid
    from deploykit.judge import figures

    achieved = manifest.achieved
    counts = [
        [name, f"{achieved.ops[name]:,}", f"{achieved.macs.get(name, 0):,}", f"{achieved.weights.get(name, 0):,}"]
        for name in achieved.ops
    ]
    heads = ["precision", "operators", "multiply-accumulates", "weights"]
    yield grid(f"Achieved, counted in {achieved.source}", heads, counts, right=heads[1:])
    yield from (f"note: {text}" for text in achieved.notes)
    if achieved.delegation is not None:
        yield f"note: {achieved.delegation.described}"
    rest = achieved.not_as_requested
    if rest:
        rows = [
            [layer.module_path or layer.name, layer.op, layer.precision, f"{layer.macs:,}", layer.reason]
            for layer in rest[:_LAYERS_SHOWN]
        ]
        title = f"Not in {manifest.precision}, and why"
        yield grid(title, ["layer", "operator", "precision", "MACs", "reason"], rows, right=["MACs"])
    if len(rest) > _LAYERS_SHOWN:
        yield f"and {figures.plain(len(rest) - _LAYERS_SHOWN)} more; --json lists them all"


def _float_activations(found: Artifact) -> Iterator[RenderableType]:
    from deploykit.cli.tables import grid
    from deploykit.judge import figures
    from deploykit.judge.slower import time_shares

    beside = found.achieved.float_activations
    if not beside:
        return
    shares = time_shares(found.profile, found.achieved)
    rows = [
        [
            each.module_path or each.name,
            each.op,
            f"{each.elements:,}",
            figures.size(each.bytes),
            figures.share(shares.get(each.name)),
        ]
        for each in beside[:_LAYERS_SHOWN]
    ]
    heads = ["operator of", "kind", "elements", "moves", "of time"]
    yield grid("In float between integer layers", heads, rows, right=heads[2:])
    if len(beside) > _LAYERS_SHOWN:
        yield f"and {figures.plain(len(beside) - _LAYERS_SHOWN)} more; --json lists them all"


def _parity(report: ParityReport) -> Iterator[RenderableType]:
    from deploykit.cli.tables import grid, pairs
    from deploykit.judge import figures

    verdict = "passed" if report.passed else "; ".join(report.failures)
    rows = [
        ("verdict", verdict),
        ("evidence", f"{report.evidence}, {report.samples} samples ({report.data})"),
        ("gate", _gate(report)),
        ("host", str(report.host)),
    ]
    if report.metric is not None:
        metric = report.metric
        fall = f"{figures.plain(metric.reference)} -> {figures.plain(metric.artifact)}"
        rows.append(("task metric", f"{fall} (may fall by {figures.plain(metric.max_drop)})"))
    if report.chain and report.chain[-1].worst.part is not None:
        part = report.chain[-1].worst.part
        rows.append(("worst part", f"{part}: {figures.decibel(part.sqnr_db)}"))
    if (spread := report.spread) is not None:
        between = f"{figures.decibel(spread.low_db)} to {figures.decibel(spread.high_db)}, the lower end is gated"
        rows.append(("on other samples", between))
        least = f"{figures.decibel(spread.sample_db[0])} at least, {figures.decibel(spread.median_db)} in the middle"
        rows.append((f"of each sample ({spread.samples})", least))
    for other in report.other_samples:
        rows.append((f"{other.data} ({other.samples})", figures.decibel(other.worst.sqnr_db)))
    yield pairs("Parity", [*rows, *(("note", text) for text in report.notes)])
    chain = [[f"{link.reference} -> {link.candidate}", *figures.of_link(link)] for link in report.chain]
    heads = ["compared", "evidence", "SQNR", "cosine", "max abs", "top-1"]
    yield grid("Parity chain", heads, chain, right=heads[2:])
    if report.layers:
        worst = [
            [layer.module_path or layer.name, layer.op, figures.decibel(layer.sqnr_db)]
            for layer in report.worst_layers(_WORST_SHOWN)
        ]
        yield grid("Worst layers", ["layer", "operator", "SQNR"], worst, right=["SQNR"])


def _gate(report: ParityReport) -> str:
    from deploykit.judge import figures

    gate = report.tolerance
    parts = (
        ("SQNR", gate.min_sqnr_db, figures.decibel),
        ("cosine", gate.min_cosine, figures.plain),
        ("top-1", gate.min_top1_agreement, figures.share),
    )
    return ", ".join(f"{name} >= {show(least)}" for name, least, show in parts if least is not None) or "none"


def _origin(manifest: Manifest) -> Table:
    from deploykit.cli.tables import pairs

    rows = [("deploykit", manifest.deploykit_version)]
    rows += [("tool", f"{name} {version}") for name, version in sorted(manifest.tool_versions.items())]
    if manifest.calibration is not None:
        made = manifest.calibration
        origin = "made-up data, as asked for" if made.source == "synthetic" else made.source
        apart = f" ({made.held_out} more held out for parity)" if made.held_out else ""
        rows.append(("calibration", f"{origin}, {made.samples} samples{apart}, method {made.method}"))
    rows += [(f"{name} fingerprint", value) for name, value in sorted(manifest.fingerprints.items())]
    if manifest.parent:
        rows.append(("built from", manifest.parent))
    rows += [("option", f"{name} = {value}") for name, value in sorted(manifest.options.items())]
    rows += [("recorded", f"{name} = {_short(value)}") for name, value in sorted(manifest.metadata.items())]
    return pairs("Origin", rows)


def _short(value: object) -> str:
    """What a conversion recorded, on a few lines: a compiler's listing has hundreds, and `--json` has them all."""
    text = str(value)
    return text if len(text) <= _RECORDED else f"{text[:_RECORDED]}... ({len(text)} characters; --json has them)"


def _files(manifest: Manifest) -> Table:
    from deploykit.cli.tables import grid
    from deploykit.judge import figures

    rows: Sequence[Sequence[str]] = [
        [entry.path, figures.size(entry.size), entry.sha256[:16]] for entry in manifest.files
    ]
    return grid("Files (hashes checked)", ["file", "size", "sha256"], rows, right=["size"])
