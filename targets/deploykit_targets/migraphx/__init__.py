"""AMD GPUs through MIGraphX."""

from __future__ import annotations

from deploykit_targets.migraphx.target import MigraphxTarget

__all__ = ["MigraphxTarget"]
