"""Float files that the converter's process has made: a model is converted once, whatever is made of its file.

The fp16, int8-dynamic, int16x8 and weight-only files, and the float build that a profile compares with, begin with it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_KEPT_BYTES = 1 << 30


class FloatFiles:
    """Files by key, in a folder that lasts as long as the converter's process.

    Args:
        folder: the folder of that process.
        limit: bytes that are kept; the file used longest ago goes first, the last one stays.
    """

    def __init__(self, folder: Path, *, limit: int = _KEPT_BYTES) -> None:
        self._folder, self._limit = folder, limit
        self._sizes: dict[str, int] = {}

    def take(self, key: str, destination: Path) -> bool:
        """Copy the file of a key, and print what its conversion printed; False where there is none."""
        if not has(self._folder, key):
            return False
        self._sizes[key] = self._sizes.pop(key)
        shutil.copyfile(_path(self._folder, key), destination)
        print(_path(self._folder, key).with_suffix(".log").read_text(encoding="utf-8", errors="replace"))
        return True

    def keep(self, key: str, source: Path, log: Path) -> None:
        """Keep a copy of a new file, and of what was printed meanwhile."""
        path = _path(self._folder, key)
        shutil.copyfile(log, path.with_suffix(".log"))
        shutil.copyfile(source, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)
        self._sizes[key] = path.stat().st_size
        while len(self._sizes) > 1 and sum(self._sizes.values()) > self._limit:
            oldest = next(iter(self._sizes))
            del self._sizes[oldest]
            _path(self._folder, oldest).unlink()
            _path(self._folder, oldest).with_suffix(".log").unlink()


def has(folder: Path, key: str) -> bool:
    """Whether the process that works in `folder` has the file already, so that the graph need not be sent."""
    return _path(folder, key).is_file()


def _path(folder: Path, key: str) -> Path:
    return folder / f"float-{key}.tflite"
