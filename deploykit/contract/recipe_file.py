"""A `Recipe` as TOML: written with a layer a line, read with every mistake named by its line.

TOML because people edit it: it takes comments, and a changed layer is one changed line. What is written is canonical,
so that the same recipe is the same file; keys that hold their default are left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import tempfile
import tomllib
import typing
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from deploykit.contract.errors import UsageError, reason_of
from deploykit.contract.reading import read_bytes
from deploykit.contract.recipe import SCHEMA_VERSION, Recipe

_MAX_BYTES = 8 << 20
_TOP = (
    "# What deploykit decided for one model on one target; `deploykit export --recipe FILE` follows it.",
    '# To keep a layer in float, change its precision to "float" and say why in its reason.',
)
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_PATH = re.compile(r"`(?:key in )?\$([^`]*)`")
_STEP = re.compile(r"\.([A-Za-z0-9_-]+)|\[(\d+)\]")
_HINT = "deploykit writes one for every export; see `deploykit inspect ARTIFACT --recipe FILE`"


def write(recipe: Recipe, path: Path) -> None:
    """See `Recipe.write`."""
    part = path.parent / f".recipe-{uuid.uuid4().hex}.part"
    try:
        _refuse_folder(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("x", encoding="utf-8", newline="\n") as file:
            file.write(dumps(recipe))
        part.replace(path)
    except (OSError, ValueError) as error:  # ValueError: a name with NUL
        raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError, ValueError):
            part.unlink()


def check_writable(path: Path) -> None:
    """Refuse a file that could not be written in the end, before minutes are spent on what it shall hold.

    Nothing is left behind, and no folder is made.

    Raises:
        UsageError: as `Recipe.write`.
    """
    try:
        _refuse_folder(path)
        with contextlib.suppress(FileNotFoundError):
            path.stat()  # a name that is too long, a folder of it that is a file
        folder = next(each for each in path.absolute().parents if each.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


def _unwritable(path: Path, error: OSError | ValueError) -> UsageError:
    return UsageError(f"cannot write {str(path)!r}: {reason_of(error)}", hint="choose another file")


def read(path: Path) -> Recipe:
    """See `Recipe.read`."""
    data = read_bytes(path, limit=_MAX_BYTES, links=True, error=UsageError)
    try:
        text = data.decode("utf-8-sig")  # some editors begin a file with a mark
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}, line {line}: not UTF-8", hint="save the file as UTF-8") from error
    return loads(text, what=str(path))


def dumps(recipe: Recipe) -> str:
    """The text of a recipe file."""
    return "\n".join((*_TOP, *_lines(recipe), ""))


def loads(text: str, *, what: str = "the recipe") -> Recipe:
    """A recipe from the text of its file.

    Args:
        what: begins the message of a refusal.
    Raises:
        UsageError: as `Recipe.read` says.
    """
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{what} is not TOML: {error}", hint=_HINT) from error
    newer = data.get("schema_version", SCHEMA_VERSION)
    if isinstance(newer, int) and newer > SCHEMA_VERSION:
        message = f"{what}, line {_line(text, ['schema_version'])}: schema version {newer}; this deploykit reads"
        raise UsageError(f"{message} up to {SCHEMA_VERSION}", hint="pip install --upgrade deploykit")
    try:
        recipe = msgspec.convert(data, Recipe)
    except msgspec.ValidationError as error:
        _refuse_unknown(data, text, what)  # a key that is missing may stand there misspelt
        found = _PATH.search(str(error))
        steps = [key or int(index) for key, index in _STEP.findall(found.group(1) if found else "")]
        raise UsageError(f"{what}, line {_line(text, steps)}: {error}", hint=_HINT) from error
    _refuse_unknown(data, text, what)
    _check_unique(recipe, text, what)
    return recipe


def _refuse_unknown(data: Mapping[str, Any], text: str, what: str) -> None:
    for steps, known in _unknown(data, Recipe):
        message = f"{what}, line {_line(text, steps)}: unknown key {steps[-1]!r}"
        raise UsageError(message, hint=f"known are {', '.join(known)}")


def _check_unique(recipe: Recipe, text: str, what: str) -> None:
    for key, names in (("layers", [e.name for e in recipe.layers]), ("ranges", [e.tensor for e in recipe.ranges])):
        seen: set[str] = set()
        for number, name in enumerate(names):
            if name in seen:
                line = _line(text, [key, number])
                raise UsageError(f"{what}, line {line}: {name!r} stands twice in {key}", hint="keep one of the lines")
            seen.add(name)


def _unknown(
    data: Mapping[str, Any], kind: type[Any], at: tuple[Any, ...] = ()
) -> Iterator[tuple[list[Any], list[str]]]:
    """Where keys are that nothing reads, and which there are: a misspelt one would silently decide nothing."""
    hints, known = typing.get_type_hints(kind), [each.name for each in dataclasses.fields(kind)]
    for key, value in data.items():
        if key not in known:
            yield [*at, key], known
            continue
        inner = [hints[key], *typing.get_args(hints[key])]
        nested = next((each for each in inner if dataclasses.is_dataclass(each)), None)
        if not isinstance(nested, type):
            continue
        for number, item in enumerate(value if isinstance(value, list) else [value]):
            where = (*at, key, number) if isinstance(value, list) else (*at, key)
            if isinstance(item, Mapping):  # what is something else is refused by its type
                yield from _unknown(item, nested, where)


# Writing: keys with a plain value first, then lists of tables with an entry a line, then tables, as TOML wants them.


def _lines(recipe: Recipe) -> Iterator[str]:
    data: dict[str, Any] = msgspec.to_builtins(recipe)
    lists = {key: value for key, value in data.items() if isinstance(value, Sequence) and not isinstance(value, str)}
    tables = {key: value for key, value in data.items() if isinstance(value, dict)}
    for key, value in data.items():
        if key not in lists and key not in tables:
            yield f"{key} = {_value(value)}"
    kinds = typing.get_type_hints(Recipe)
    for key, items in lists.items():
        yield from _list(key, items, next(iter(typing.get_args(kinds[key])), str))
    for key, table in tables.items():
        if table:
            yield from ("", f"[{key}]", *(f"{_key(name)} = {_value(item)}" for name, item in _given(table)))


def _list(key: str, items: Sequence[Any], kind: Any) -> Iterator[str]:
    if not items or not isinstance(items[0], dict):
        yield f"{key} = {_value(items)}"
        return
    defaults = {each.name: each.default for each in dataclasses.fields(kind)}
    yield f"{key} = ["
    yield from (f"  {_value({k: v for k, v in item.items() if v != defaults[k] and v != {}})}," for item in items)
    yield "]"


def _given(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((key, value) for key, value in table.items() if value is not None)


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _text(name)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)  # repr of a float is the shortest that reads back as the same
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(str(key))} = {_value(item)}" for key, item in _given(value))
        return f"{{ {inside} }}" if inside else "{}"
    return f"[{', '.join(_value(item) for item in value)}]"


_ESCAPED = re.compile(r'[\x00-\x1f\x7f"\\]')


def _text(value: str) -> str:
    return f'"{_ESCAPED.sub(lambda found: _escape(found.group()), value)}"'


def _escape(character: str) -> str:
    return f"\\{character}" if character in '"\\' else f"\\u{ord(character):04x}"


# Where in the text a value stands, for messages. Strings and comments are stepped over; what is found is a line.

_TOKEN = re.compile(
    r'"""(?:[^\\]|\\.)*?"""|\'\'\'.*?\'\'\'|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|#[^\n]*|[\[\]{}]', re.DOTALL
)


def _line(text: str, steps: Sequence[Any]) -> int:
    """The line, from 1, of the value that is reached by `steps`; of its parent where it stands nowhere."""
    start, best = 0, 1
    for number, step in enumerate(steps):
        found = _item(text, start, step) if isinstance(step, int) else _named(text, start, step, top=number == 0)
        if found is None and isinstance(step, int):
            found = _header(text, str(steps[number - 1]), step)
        if found is None:
            break
        start, best = found, text.count("\n", 0, found) + 1
    return best


def _named(text: str, start: int, key: str, *, top: bool) -> int | None:
    """Where a key is set or its table begins; the first one behind `start`."""
    name = re.escape(key)
    form = rf'^[ \t]*(?:\[\[?[ \t]*)?"?{name}"?[ \t]*(?:\.|=|\])' if top else rf'(?<![\w"-])"?{name}"?[ \t]*='
    found = re.compile(form, re.MULTILINE).search(text, start)
    return None if found is None else found.start() + len(found.group()) - len(found.group().lstrip())


def _item(text: str, start: int, index: int) -> int | None:
    """Where the table at `index` of the list that begins behind `start` opens."""
    depth, seen = 0, -1
    for token in _TOKEN.finditer(text, text.find("[", start)):
        mark = token.group()
        if mark in ("[", "{"):
            seen += depth == 1
            if depth == 1 and seen == index:
                return token.start()
            depth += 1
        elif mark in ("]", "}"):
            depth -= 1
            if depth <= 0:
                return None
    return None


def _header(text: str, key: str, index: int) -> int | None:
    """Where the `[[key]]` at `index` stands."""
    found = list(re.finditer(rf"^[ \t]*\[\[[ \t]*{re.escape(key)}[ \t]*\]\]", text, re.MULTILINE))
    return found[index].start() if index < len(found) else None
