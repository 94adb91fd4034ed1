"""`deploykit store`: the store that releases are kept in."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from deploykit.cli.output import Answer
from deploykit.cli.parameters import Debug, Json


def gc(
    store: Annotated[
        str | None, typer.Argument(metavar="STORE", help="Its folder.  [default: as ./release.toml says, or out/store]")
    ] = None,
    keep: Annotated[int, typer.Option("--keep", metavar="N", min=1, help="Releases of each name to keep.")] = 5,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Remove what the newest releases do not need; what a running release uses stays."""
    from deploykit.judge import figures
    from deploykit_fleet.collect import gc as collect

    folder = _folder(store)
    found = collect(folder, keep)
    removed = f"{found.releases} releases, {found.cells} cells and {found.objects} artifacts"
    page = [f"removed {removed} ({figures.size(found.bytes)}) from {folder}; {found.kept} releases are left"]
    return Answer({"store": str(folder), **asdict(found)}, page)


def _folder(store: str | None) -> Path:
    if store is not None:
        return Path(store)
    from deploykit_fleet import release_file

    own = Path("release.toml")
    return release_file.read(own).store if own.is_file() else Path(release_file.Settings().store)
