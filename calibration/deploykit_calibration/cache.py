"""The cache of calibration tables: one file per model, data and settings.

A lookup needs the fingerprint of the data, which means reading all of it; so data is only read ahead when a table
of this model and these settings exists at all. What is damaged is ignored with a warning and written again.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from pathlib import Path

from deploykit.contract.errors import CalibrationError, reason_of
from deploykit_calibration.table import SUFFIX, CalibrationTable


class TableCache:
    """Tables of one model, calibrated in one way, in a folder.

    Args:
        folder: made by `prepare`.
        model_fingerprint: the fingerprint of the captured model.
        settings: everything besides model and data that has an influence on the numbers.
    """

    def __init__(self, folder: str | Path, model_fingerprint: str, settings: str) -> None:
        self._folder = Path(folder)
        self._model = model_fingerprint
        self._prefix = f"{model_fingerprint[:32]}-{hashlib.sha256(settings.encode()).hexdigest()[:16]}-"

    def prepare(self) -> None:
        """Make the folder and write to it, so that a pass over all data is not lost to a folder that takes no file.

        Raises:
            CalibrationError: the folder cannot be made or written to.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._folder):
                pass
        except (OSError, ValueError) as error:  # ValueError: a name with NUL
            raise CalibrationError(
                f"cache_dir: {str(self._folder)!r} cannot be written: {reason_of(error)}",
                hint="name another folder, or leave it out",
            ) from error

    def may_hold_any(self) -> bool:
        """Whether a lookup could succeed for some data."""
        return self._folder.is_dir() and any(self._folder.glob(f"{self._prefix}*{SUFFIX}"))

    def find(self, data_fingerprint: str) -> CalibrationTable | None:
        """The table of this data; None where there is none, or it is damaged (with a warning)."""
        path = self._path(data_fingerprint)
        if not path.is_file():
            return None
        try:
            table = CalibrationTable.load(path)
            table.check_model(self._model)
        except CalibrationError as error:
            warnings.warn(f"ignoring the cached calibration, calibrating again: {error.message}", stacklevel=2)
            return None
        return table.marked_from_cache() if table.data_fingerprint == data_fingerprint else None

    def keep(self, table: CalibrationTable) -> None:
        """Save a table under its data's fingerprint."""
        table.save(self._path(table.data_fingerprint))

    def _path(self, data_fingerprint: str) -> Path:
        return self._folder / f"{self._prefix}{data_fingerprint[:32]}{SUFFIX}"
