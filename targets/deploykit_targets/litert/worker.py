"""The converter's process: started early, so that its imports run beside our own work; told once what to convert."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deploykit_targets.litert import convert_child
from deploykit_targets.litert.failures import HasSource, crashed, translated


class Worker:
    """One process for one conversion, and the folder that it shares with us; a context manager.

    Attributes:
        folder: temporary; holds request, program and results.
    """

    def __enter__(self) -> Self:
        self._temporary = tempfile.TemporaryDirectory(prefix="deploykit-litert-")
        self.folder = Path(self._temporary.name)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", convert_child.__name__, str(self.folder)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        return self

    def convert(self, request: Mapping[str, Any], origins: Mapping[str, HasSource]) -> tuple[dict[str, Any], str]:
        """Convert the program that lies in the folder.

        Args:
            request: see `convert_child`.
            origins: of the captured graph, for messages.
        Returns:
            What the file takes and gives, and all that the converter printed.
        Raises:
            ConversionError: it refused or crashed.
        """
        (self.folder / convert_child.REQUEST).write_text(json.dumps(request), encoding="utf-8")
        self._process.communicate(b"go\n")
        log = (self.folder / "log").read_text(encoding="utf-8", errors="replace").replace(str(self.folder), "<folder>")
        error, result = self.folder / convert_child.ERROR, self.folder / convert_child.RESULT
        if error.is_file():
            raise translated(json.loads(error.read_text(encoding="utf-8"))["message"], log, origins)
        if self._process.returncode != 0 or not result.is_file():
            raise crashed(self._process.returncode, log)
        interface: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return interface, log

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
        self._temporary.cleanup()
