"""`deploykit device`: boards by name: write them down, list them, run artifacts on them, free them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploykit.cli.output import Answer, note
from deploykit.cli.parameters import AllowNative, Debug, Json, Key, Options, parse_options
from deploykit.contract.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deploykit.plugin.artifact import Artifact
    from deploykit_fleet.devices import Device, Entry

Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the board, as in `deploykit device list`.")]
File = Annotated[
    str | None,
    typer.Option(
        "--devices",
        metavar="FILE",
        help="The list of boards.  [default: $DEPLOYKIT_DEVICES, or devices.toml in the user's configuration folder]",
    ),
]


def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="That the board is to have.")],
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="As for ssh (user@host); or adb:SERIAL.")],
    target: Annotated[
        str, typer.Option("--target", help="Device that artifacts for it are exported to; see `deploykit targets`.")
    ] = "",
    python: Annotated[
        str, typer.Option("--python", metavar="PATH", help="The Python there that has deploykit.  [default: found]")
    ] = "",
    no_probe: Annotated[bool, typer.Option("--no-probe", help="Write it down without asking it.")] = False,
    devices: File = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Write a board down, with what it says of itself.

    It is asked over ssh (or adb) for its processor, its system and what runs artifacts there. A board of that name is
    replaced.
    """
    from deploykit.places.address import board_at
    from deploykit.plugin.registry import resolve
    from deploykit_fleet.devices.probe import check_target, probe
    from deploykit_fleet.devices.registry import Entry, Registry, check_name

    check_name(name)
    if target:
        resolve(target)
    board, found, why = board_at(address, python=python or None), None, ""
    if not no_probe:
        found, why = probe(board)
        if target:
            check_target(target, found, name)
    entry, registry = Entry(address, target, python, found), Registry(devices)
    registry.put(name, entry)
    if why:
        note(f"{name} runs only artifacts that bring a program of their own: {why}")
    return Answer(
        {"device": _document(name, entry), "path": registry.path}, [*_page({name: entry}), str(registry.path)]
    )


def list_(devices: File = None, json: Json = False, debug: Debug = False) -> Answer:
    """List the boards that are written down; none is contacted."""
    from deploykit_fleet.devices.registry import Registry

    registry = Registry(devices)
    entries = registry.entries()
    page = _page(entries) if entries else [f"no devices in {registry.path}: deploykit device add NAME user@host"]
    return Answer({"path": registry.path, "devices": [_document(*each) for each in entries.items()]}, page)


def run(
    name: Name,
    artifact: Annotated[str, typer.Argument(metavar="ARTIFACT", help="Folder of an exported artifact.")],
    source: Annotated[
        str | None, typer.Option("--input", "-i", metavar="FILE", help="Run these arrays: .npz, .safetensors or .npy.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="PATH", help="File for the outputs, or folder of the built artifact."),
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Measure its speed there.")] = False,
    sustained: Annotated[
        bool, typer.Option("--sustained", help="Run it for ten minutes: the last minute against the first.")
    ] = False,
    sustained_s: Annotated[
        float | None, typer.Option("--sustained-s", metavar="SECONDS", min=0.1, help="The same, for so long.")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.01, help="Time for the measured runs.")] = 1.0,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads of the profile's runtime.")] = None,
    save: Annotated[bool, typer.Option("--save", help="Keep the profile in the artifact.")] = False,
    build: Annotated[bool, typer.Option("--build", help="Finish the artifact there, and fetch it.")] = False,
    option: Options = None,
    wait: Annotated[
        float, typer.Option("--wait-s", min=0.0, help="How long to wait while another client uses the board.")
    ] = 120.0,
    devices: File = None,
    key: Key = None,
    allow_native: AllowNative = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Verify an artifact on a board; run it on arrays, profile it or build it there where that is asked for.

    It is copied to the board and executed there, while this client has the board's lease. Native code of an artifact
    that was not made here runs only with --key or --allow-native.
    """
    from deploykit.plugin.artifact import load
    from deploykit_fleet.devices import device

    board = device(name, devices=devices)
    _check(source, output, build)
    own = load(artifact, key=key, allow_native=allow_native)
    note(f"this copies a program to {board.board} and executes it there")
    document: dict[str, Any] = {"device": name, "path": artifact}
    page: list[RenderableType] = []
    with board.leased(wait_s=wait):
        if build:
            own = board.build(own, output=output, options=parse_options(option or ()) or None)
            document["built"] = own.summary()
            page.append(f"built on {name}: {own.path}")
        if source is not None:
            _run(board, own, source, str(output), document, page)
        elif not build:  # a build is proved there already
            _verify(board, own, document, page)
        if profile or sustained or sustained_s or save:
            _profile(board, own, (seconds, threads, sustained_s or sustained), save, document, page)
    return Answer(document, page)


def release(name: Name, devices: File = None, json: Json = False, debug: Debug = False) -> Answer:
    """Free a board: end the lease of whoever has it, and what that one left running."""
    from deploykit_fleet.devices import device

    owner = device(name, devices=devices).release()
    said = f"{name} is free; {owner} had it" if owner else f"{name} was free"
    return Answer({"device": name, "released": bool(owner), "owner": owner or None}, [said])


def _check(source: str | None, output: str | None, build: bool) -> None:
    """Refuse what cannot be before a board is contacted."""
    from deploykit.cli.arrays import check_suffix

    if source is not None and build:
        raise UsageError("--input and --build each want --output for themselves", hint="call it twice")
    if source is not None:
        if output is None:
            raise UsageError("--input needs --output FILE for the outputs")
        check_suffix(output)
    elif output is not None and not build:
        raise UsageError("--output belongs to --input, or to --build")


def _verify(board: Device, own: Artifact, document: dict[str, Any], page: list[RenderableType]) -> None:
    from deploykit.cli.tables import pairs
    from deploykit.judge import figures

    metrics = board.verify(own)
    document |= {"verified": True, "metrics": metrics, "evidence": board.evidence(own)}
    rows = [
        ("golden data", f"gives the same outputs on {board.name} as where the artifact was made"),
        ("evidence", str(document["evidence"])),
        ("SQNR", figures.decibel(metrics.sqnr_db)),
        ("max abs", figures.plain(metrics.max_abs)),
    ]
    page.append(pairs("", rows))


def _profile(
    board: Device,
    own: Artifact,
    asked: tuple[float, int | None, Any],
    save: bool,
    document: dict[str, Any],
    page: list[Any],
) -> None:
    from deploykit.cli.commands.profile import profile_page, with_worth_it
    from deploykit.judge.profiling import Effort

    seconds, threads, sustained = asked
    measured = board.profile(own, effort=Effort(seconds=seconds, threads=threads), sustained=sustained)
    if save:
        own.save_profile(measured)
    document |= {"profile": with_worth_it(measured), "saved": save}
    page += ["", *profile_page(measured)]


def _run(
    board: Device, own: Artifact, source: str, output: str, document: dict[str, Any], page: list[RenderableType]
) -> None:
    from deploykit.artifact.storage import write_file
    from deploykit.cli.arrays import batches, encode, fitting, read_arrays
    from deploykit.cli.commands.run import joined
    from deploykit.contract.session import FunctionSession

    pieces = batches(own.inputs, fitting(own.inputs, read_arrays(source), source))
    outputs = joined(board.run(own, pieces), FunctionSession(lambda _: {}, own.inputs, own.outputs))
    write_file(Path(output), encode(outputs, output))
    shapes = {name: {"dtype": str(array.dtype), "shape": list(array.shape)} for name, array in outputs.items()}
    document |= {"input": source, "output": output, "runs": len(pieces), "outputs": shapes}
    page += [*(f"{name}: {array.dtype}{list(array.shape)}" for name, array in outputs.items()), f"written to {output}"]


def _document(name: str, entry: Entry) -> dict[str, Any]:
    return {"name": name, **asdict(entry)}


def _page(entries: dict[str, Entry]) -> list[RenderableType]:
    from deploykit.cli.tables import grid

    rows = []
    for name, entry in entries.items():
        found = entry.found
        machine = f"{found.model or found.arch}, {found.cores} cores, {found.os}" if found else "not asked"
        runs = ", ".join(f"{package} {version}" for package, version in found.runtimes.items()) if found else ""
        rows.append([name, entry.address, entry.target or "-", machine, runs or "-"])
    return [grid("Devices", ["name", "address", "target", "machine", "runtimes"], rows)]


COMMANDS = (add, list_, run, release)
