"""Imports of optional packages: one place, one error.

Vendor packages are imported inside functions only, through `require`, so that `import deploykit` stays fast
and a missing package is an error that says which extra brings it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from deploykit.contract.errors import MissingDependencyError

_NATIVE = frozenset({".so", ".pyd", ".dll", ".dylib"})


@dataclass(frozen=True)
class Requirement:
    """A package that a toolchain needs.

    Attributes:
        module: import name, such as `onnxruntime`.
        distribution: name on the package index, where it differs from `module`.
        how: how to get it, where the package index does not have it.
        api: a name that the real package defines, where the index has an empty one of the same name.
    """

    module: str
    distribution: str = ""
    how: str = ""
    api: str = ""

    @property
    def project(self) -> str:
        """The distribution's name."""
        return self.distribution or self.module

    @property
    def installed(self) -> bool:
        """Whether it could be imported; nothing is imported to find out.

        A folder of that name somewhere on the path is not the package: Python would import it as an empty one.
        """
        spec = importlib.util.find_spec(self.module)
        return spec is not None and spec.origin is not None and (not self.api or _defines(Path(spec.origin), self.api))

    @property
    def is_placeholder(self) -> bool:
        """Whether something of that name is installed that has nothing in it: a package without its API, or no code."""
        return bool(self.api) and not self.installed and (self.version is not None or _is_found(self.module))

    @property
    def version(self) -> str | None:
        """The installed version, or None."""
        try:
            return importlib.metadata.version(self.project)
        except importlib.metadata.PackageNotFoundError:
            return None


def _is_found(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


def _defines(origin: Path, name: str) -> bool:
    """Whether a module is native code, brings native code, or has `name` in its source; nothing is imported."""
    if origin.suffix != ".py":
        return True
    files = (origin,) if origin.name != "__init__.py" else origin.parent.rglob("*")
    return any(
        file.suffix in _NATIVE or (file.suffix == ".py" and name in file.read_text(encoding="utf-8", errors="replace"))
        for file in files
    )


@dataclass(frozen=True)
class SystemTool:
    """A program that a toolchain starts and that pip does not install.

    Attributes:
        command: name of the executable, such as `qemu-aarch64-static`.
        package: Debian package that has it, such as `qemu-user-static`.
        purpose: what it is needed for, as the end of "needed to".
    """

    command: str
    package: str
    purpose: str

    @property
    def installed(self) -> bool:
        """Whether the executable is on the PATH."""
        return shutil.which(self.command) is not None

    @property
    def install_command(self) -> str:
        """The command that installs it on Debian and Ubuntu."""
        return f"sudo apt-get install {self.package}"

    def find(self) -> str:
        """Its path.

        Raises:
            MissingDependencyError: it is not installed; the message has the command that installs it.
        """
        path = shutil.which(self.command)
        if path is None:
            raise MissingDependencyError(self.command, extra="", purpose=self.purpose, command=self.install_command)
        return path


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import `module`, or say which extra of deploykit installs it.

    Args:
        module: dotted import name.
        extra: the extra that brings it, such as `onnxruntime`.
        purpose: ends the sentence "... is needed to".
    Raises:
        MissingDependencyError: the package, or one that it imports, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(error.name or module, extra=extra, purpose=purpose) from error


def versions(*distributions: str) -> dict[str, str]:
    """Installed versions by distribution name, for the record of what took part; missing ones are left out."""
    found = {name: Requirement(name).version for name in distributions}
    return {name: version for name, version in found.items() if version is not None}
