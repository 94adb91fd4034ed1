"""`release.toml`: what a release is of, read and checked, with every mistake named by its line.

A key that nothing reads would silently decide nothing, so it is refused, with the key that was probably meant. Whether
targets and precisions exist is asked of the registry in `deploykit_fleet.planner`; nothing is imported or run here.
Paths are relative to the folder of the file.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from deploykit.contract.errors import UsageError
from deploykit.contract.reading import read_bytes
from deploykit_fleet.toml_lines import line_of

SYNTHETIC = "synthetic"
ENGINES = ("auto", "ray", "pool", "sequential")
_MAX_BYTES = 1 << 20
_MAX_CELLS = 2_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FUNCTION = re.compile(r"[^\s:]+:[^\s:]+")
_PATH = re.compile(r"`(?:key in )?\$([^`]*)`")
_STEP = re.compile(r"\.([A-Za-z0-9_-]+)|\[(\d+)\]")
_HINT = "fleet/README.md lists every key"

S = TypeVar("S", bound=msgspec.Struct)
Skip = Literal["unsupported", "missing", "device"]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """`[release]`.

    Attributes:
        store: folder of the store.
        name: of the release; "" for the name of the file.
        engine: `auto`, `ray`, `pool` or `sequential`.
        threads: of PyTorch and of libraries in each process that exports; part of every key, because the order of sums
            can move last digits.
        retries: how often a cell is tried again whose process died.
        profile: measure the artifacts, alone and after the exports.
    """

    store: str = "out/store"
    name: str = ""
    engine: str = "auto"
    threads: int = 1
    retries: int = 2
    profile: bool = True


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """`[model.NAME]`.

    Attributes:
        factory: `package.module:function` that returns the model, or model and example inputs.
        weights: files (patterns allowed) that the factory reads; hashed into every key.
        files: further files that factory or metric read.
        version: anything that tells this model from an older one whose weights come from elsewhere.
        calibration: file with data, or `synthetic`; "" for what the model itself offers.
        evaluate: `package.module:function`, the task metric.
        dynamic_batch: keep axis 0 of every input dynamic.
    """

    factory: str
    weights: str | tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    version: str = ""
    calibration: str = ""
    evaluate: str = ""
    dynamic_batch: bool = False

    @property
    def patterns(self) -> tuple[str, ...]:
        """Every file or pattern that was declared."""
        weights = (self.weights,) if isinstance(self.weights, str) else self.weights
        return (*weights, *self.files)


class Gates(msgspec.Struct, frozen=True, kw_only=True):
    """`gates`: None is the default of the precision, or no gate where that has none."""

    max_drop: float | None = None
    min_placement: float | None = None
    min_speedup: float | None = None
    min_sqnr_db: float | None = None
    min_cosine: float | None = None
    min_top1_agreement: float | None = None


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What decides how a cell is exported, beside model, target and precision; as `deploykit.export` takes it."""

    calibration_method: str = "default"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    algorithms: tuple[str, ...] = ()
    options: dict[str, Any] = {}
    recipe: str = ""


class Block(Recipe, frozen=True, kw_only=True):
    """`[[cell]]`: every model on every target in every precision.

    Attributes:
        models, targets, precisions: names.
        gates: what each artifact must reach.
        device: name of a board in the list of `deploykit device`; "" for none.
        allow_skip: what may be skipped and is no failure: `unsupported` (the target has no such precision), `missing`
            (what exports or runs it is not installed), `device` (its board cannot be reached, or is in use).
    """

    models: tuple[str, ...]
    targets: tuple[str, ...]
    precisions: tuple[str, ...]
    gates: Gates = Gates()
    device: str = ""
    allow_skip: tuple[Skip, ...] = ()


@dataclass(frozen=True)
class CellSpec:
    """One cell as the file asks for it; `number` is that of its `[[cell]]`, from 0."""

    model: str
    target: str
    precision: str
    block: Block
    number: int

    @property
    def name(self) -> str:
        """`model/target/precision`."""
        return f"{self.model}/{self.target}/{self.precision}"


@dataclass(frozen=True)
class ReleaseFile:
    """A checked release file.

    Attributes:
        path: absolute.
        settings, models: as they stand in it, models by name.
        cells: every combination, in the order of the file.
        text, given: the text of the file, and how its user named it, for messages.
    """

    path: Path
    settings: Settings
    models: Mapping[str, Model]
    cells: tuple[CellSpec, ...]
    text: str
    given: str

    def refusal(self, at: Sequence[str | int], message: str, *, hint: str | None = None) -> UsageError:
        """An error about what is reached by the keys and indices of `at`, with its line."""
        return UsageError(f"{self.given}, line {line_of(self.text, at)}: {message}", hint=hint or _HINT)

    @property
    def folder(self) -> Path:
        """That relative paths start from, and that exports are made in."""
        return self.path.parent

    @property
    def store(self) -> Path:
        """Folder of the store."""
        return Path(os.path.normpath(self.folder / self.settings.store))

    @property
    def name(self) -> str:
        """Of the release."""
        return self.settings.name or self.path.stem


def read(where: str | Path) -> ReleaseFile:
    """Read and check a release file.

    Raises:
        UsageError: it cannot be read, is not TOML, or something in it is missing, misspelt, of the wrong type or names
            nothing; the message says the line, the hint what was probably meant.
    """
    path = Path(where).absolute()
    data = read_bytes(path, limit=_MAX_BYTES, links=True, error=UsageError)
    try:
        text = data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(f"{where}, line {line}: not UTF-8", hint="save the file as UTF-8") from error
    return _Reader(text, str(where)).file(path)


class _Reader:
    """The text of one file, what it is called in messages, and the checks."""

    def __init__(self, text: str, what: str) -> None:
        self._text, self._what = text, what

    def file(self, path: Path) -> ReleaseFile:
        """The whole file."""
        data = self._parsed()
        self._known(data, ("release", "model", "cell"), ())
        settings = self._settings(data.get("release", {}))
        tables = self._table(data.get("model", {}), ("model",))
        models = {name: self._model(name, table) for name, table in tables.items()}
        if not models:
            raise self._refusal((), "it names no model", hint='[model.NAME] with factory = "package.module:function"')
        cells = tuple(self._cells(data.get("cell"), models))
        return ReleaseFile(path, settings, models, cells, self._text, self._what)

    def _parsed(self) -> dict[str, Any]:
        try:
            return tomllib.loads(self._text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise UsageError(f"{self._what} is not TOML: {error}", hint=_HINT) from error

    def _settings(self, given: Any) -> Settings:
        found = self._typed(given, Settings, ("release",))
        for name, most in (("threads", 1024), ("retries", 100)):
            value = getattr(found, name)
            if not (name == "threads") <= value <= most:
                raise self._refusal(("release", name), f"{name} is {value}", hint=f"at most {most}")
        self._one_of(found.engine, ENGINES, ("release", "engine"), "engine")
        if found.name and not _NAME.fullmatch(found.name):
            raise self._refusal(("release", "name"), f"{found.name!r} is no name", hint="letters, digits and ._-")
        if not found.store.strip() or "\0" in found.store:
            raise self._refusal(("release", "store"), f"{found.store!r} names no folder", hint='store = "out/store"')
        return found

    def _model(self, name: str, given: Any) -> Model:
        at = ("model", name)
        if not _NAME.fullmatch(name):
            raise self._refusal(at, f"{name!r} is no name", hint="letters, digits and ._-, beginning with one of those")
        found = self._typed(given, Model, at)
        for key in ("factory", "evaluate"):
            value = getattr(found, key)
            if (value or key == "factory") and not _FUNCTION.fullmatch(value):
                message = f"{key} {value!r} is not of the form package.module:function"
                raise self._refusal((*at, key), message, hint=f'{key} = "package.module:function"')
        return found

    def _cells(self, given: Any, models: Mapping[str, Model]) -> Iterator[CellSpec]:
        if not isinstance(given, list) or not given:
            raise self._refusal(("cell",), "it has no [[cell]]", hint="[[cell]] with models, targets, precisions")
        seen: dict[str, int] = {}
        for number, table in enumerate(given):
            at = ("cell", number)
            block = self._block(table, at, models)
            for cell in _product(block, number):
                if cell.name in seen:
                    line = self._line(("cell", seen[cell.name]))
                    raise self._refusal(at, f"{cell.name} stands in the [[cell]] of line {line}, too", hint="keep one")
                seen[cell.name] = number
                if len(seen) > _MAX_CELLS:
                    raise self._refusal(at, f"it has more than {_MAX_CELLS} cells", hint="split the release")
                yield cell

    def _block(self, table: Any, at: tuple[str | int, ...], models: Mapping[str, Model]) -> Block:
        block = self._typed(table, Block, at)
        for key in ("models", "targets", "precisions"):
            values = getattr(block, key)
            if not values:
                raise self._refusal((*at, key), f"{key} is empty", hint=f"name at least one of {key}")
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise self._refusal((*at, key), f"{twice!r} stands twice in {key}", hint="name it once")
        for name in block.models:
            self._one_of(name, tuple(models), (*at, "models"), "model")
        self._check_gates(block, at, models)
        return block

    def _check_gates(self, block: Block, at: tuple[str | int, ...], models: Mapping[str, Model]) -> None:
        bounds = {"min_placement": (0.0, 1.0), "min_cosine": (-1.0, 1.0), "min_top1_agreement": (0.0, 1.0)}
        for key in Gates.__struct_fields__:
            value = getattr(block.gates, key)
            least, most = bounds.get(key, (-1e300, 1e300))
            if value is not None and not least <= value <= most:
                hint = f"from {least:g} to {most:g}" if key in bounds else "a finite number"
                raise self._refusal((*at, "gates", key), f"{key} is {value}", hint=hint)
        speed = block.gates.min_speedup
        if speed is not None and speed <= 0:
            raise self._refusal((*at, "gates", "min_speedup"), f"min_speedup is {speed}", hint="a factor above 0")
        blind = [name for name in block.models if block.gates.max_drop is not None and not models[name].evaluate]
        if blind:
            message = f"max_drop needs a metric, and model {blind[0]!r} has none"
            raise self._refusal(
                (*at, "gates", "max_drop"), message, hint=f'[model.{blind[0]}] evaluate = "pkg.eval:fn"'
            )

    def _typed(self, given: Any, kind: type[S], at: tuple[str | int, ...]) -> S:
        """A table as its type."""
        table = self._table(given, at)
        self._known(table, kind.__struct_fields__, at)
        if isinstance(table.get("gates"), dict):
            self._known(table["gates"], Gates.__struct_fields__, (*at, "gates"))
        try:
            return msgspec.convert(table, kind)
        except (msgspec.ValidationError, OverflowError, RecursionError) as error:
            found = _PATH.search(str(error))
            inner = [key or int(index) for key, index in _STEP.findall(found.group(1) if found else "")]
            raise self._refusal((*at, *inner), _PATH.sub(lambda m: f"`{m[1].lstrip('.')}`", str(error))) from error

    def _table(self, given: Any, at: tuple[str | int, ...]) -> dict[str, Any]:
        if isinstance(given, dict):
            return given
        where = ".".join(map(str, at))
        raise self._refusal(at, f"{where} is {given!r}, where a table was expected", hint=_HINT)

    def _known(self, table: Mapping[str, Any], known: Sequence[str], at: tuple[str | int, ...]) -> None:
        for key in table:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                raise self._refusal((*at, key), f"unknown key {key!r}", hint=hint)

    def _one_of(self, value: str, known: Sequence[str], at: tuple[str | int, ...], kind: str) -> None:
        if value not in known:
            near = difflib.get_close_matches(value, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise self._refusal(at, f"unknown {kind} {value!r}", hint=hint)

    def _line(self, at: Sequence[str | int]) -> int:
        return line_of(self._text, at)

    def _refusal(self, at: Sequence[str | int], message: str, *, hint: str = _HINT) -> UsageError:
        return UsageError(f"{self._what}, line {self._line(at)}: {message}", hint=hint)


def _product(block: Block, number: int) -> Iterator[CellSpec]:
    for model in block.models:
        for target in block.targets:
            for precision in block.precisions:
                yield CellSpec(model, target, precision, block, number)
