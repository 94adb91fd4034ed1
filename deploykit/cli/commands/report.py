"""`deploykit report`: an artifact, a folder of artifacts or a release as one offline page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.cli.output import Answer
from deploykit.cli.parameters import Debug, Json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deploykit_fleet.report.making import Report


def report(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="An artifact, a folder of artifacts, or what `release` wrote.")
    ],
    against: Annotated[
        str | None, typer.Option("--against", metavar="OLD", help="An older one: what changed, and is it chance?")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="The page.  [default: DIR/report.html, or beside it]"),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Write one offline HTML page of what was exported.

    Matrix, fronts of latency, accuracy and size, layers, time, how recipes were found; and what changed since another.
    """
    from deploykit_fleet.report.making import report as make

    made = make(folder, against=against, output=output)
    return Answer(made.document(), list(_page(made)))


def _page(made: Report) -> list[RenderableType]:
    from deploykit.cli.tables import grid

    states = made.document()["states"]
    counts = ", ".join(f"{count} {state}" for state, count in states.items() if count)
    page: list[RenderableType] = [f"{made.path}: {counts}"]
    if made.comparison is None:
        return page
    shown = [change for change in made.comparison.changes if change.verdict != "same"]
    if shown:
        rows = [[each.verdict, each.entry, each.what, each.old, each.new, each.why] for each in shown]
        heads = ["verdict", "build", "figure", "before", "now", "why"]
        page.append(grid(f"Since {made.comparison.old}", heads, rows))
    worse = len(made.findings)
    page.append(f"{worse} worse since {made.comparison.old}" if worse else f"nothing worse since {made.comparison.old}")
    return page
