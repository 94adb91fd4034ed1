"""What a function of the user is made of, without importing it: the source files behind `package.module:function`.

The module and all that it imports are followed through their syntax trees. Files below the release's own folders are
hashed; of what is installed, name and version of the distribution count. What code reads at run time (weights, data)
cannot be seen here, and is declared in the release file.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.machinery
import importlib.metadata
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from deploykit.contract.errors import UsageError

_INSTALLED = ("site-packages", "dist-packages")
_OURS = frozenset(
    {
        "deploykit",
        *(
            f"deploykit_{room}"
            for room in ("calibration", "fleet", "serving", "targets", "training", "trust", "tuning")
        ),
    }
)
"""Whose version stands in every key, wherever they are installed from."""
_EDITABLE = "__editable__"
"""How the modules begin that setuptools writes to find projects outside Python's path."""
_MAX_FILES = 5_000


def closure(names: Iterable[str], folders: Sequence[Path]) -> dict[str, str]:
    """Everything that some modules are made of.

    Args:
        names: modules, or `package.module:function`.
        folders: that are searched before Python's own path.
    Returns:
        By module, `sha256:...` of a source file, or `distribution==version` of what is installed. Modules of Python
        itself, and what is not there, are left out.
    Raises:
        UsageError: a module that was named is not there, or is not Python.
    """
    path = [str(folder) for folder in folders] + sys.path
    found: dict[str, str] = {}
    waiting = [(name.partition(":")[0], True) for name in names]
    while waiting:
        name, wanted = waiting.pop()
        top = name.partition(".")[0]
        if name in found or top in sys.stdlib_module_names or top in _OURS:
            continue
        file = _file_of(name, path)
        if file is None:
            if wanted:
                where = " or ".join(dict.fromkeys(map(str, folders)))
                raise UsageError(f"module {name!r} is not found in {where}, nor installed", hint="check its name")
            continue
        if _is_installed(file):
            found[name] = _version_of(top)
            continue
        data = file.read_bytes()
        found[name] = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if len(found) > _MAX_FILES:
            raise UsageError(f"{name} imports more than {_MAX_FILES} modules", hint="is the whole disk on its path?")
        if file.suffix == ".py":
            waiting += [(each, False) for each in _imported(data, name, file)]
    return found


def _file_of(name: str, path: Sequence[str]) -> Path | None:
    """The file of a module; parents are looked at and not imported, unlike by `importlib.util.find_spec`."""
    places: Sequence[str] | None = path
    spec, walked = None, ""
    for part in name.split("."):
        walked = f"{walked}.{part}" if walked else part
        if places is None:
            return None
        spec = _spec(walked, places)
        if spec is None:
            return None
        places = spec.submodule_search_locations
    origin = spec.origin if spec is not None else None
    return Path(origin) if origin and Path(origin).is_file() else None


def _spec(name: str, places: Sequence[str]) -> importlib.machinery.ModuleSpec | None:
    """Of a module in some folders, or of a project that pip installed to be edited where it lies."""
    found = importlib.machinery.PathFinder.find_spec(name, list(places))
    editable = (each for each in sys.meta_path if getattr(each, "__module__", "").startswith(_EDITABLE))
    return found or next(filter(None, (each.find_spec(name, None) for each in editable)), None)


def _is_installed(file: Path) -> bool:
    return any(part in _INSTALLED for part in file.parts)


def _imported(data: bytes, name: str, file: Path) -> Iterator[str]:
    """Modules that a source file may import, wherever in it that is said, parents included."""
    try:
        tree = ast.parse(data)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"{file} is not Python: {error}", hint="correct it, or do not import it") from error
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            yield from _with_parents(base)
            yield from (f"{base}.{alias.name}" for alias in node.names if base and alias.name != "*")
    yield from _with_parents(package)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    kept = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*kept, *([node.module] if node.module else [])])


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".") if name else []
    yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))


@functools.cache
def _version_of(top: str) -> str:
    """Distribution and version of an installed package; its name alone where no distribution claims it."""
    try:
        return f"{top}=={importlib.metadata.version(top)}"
    except importlib.metadata.PackageNotFoundError:
        owners = _owners().get(top, [])
        return "+".join(sorted(f"{owner}=={importlib.metadata.version(owner)}" for owner in set(owners))) or top


@functools.cache
def _owners() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())
