"""Pruning: weights or whole channels that a model can do without are removed, and what that gained is measured.

`prune` is `deploykit.prune`. Structured pruning finds which channels belong together with Torch-Pruning, and believes
none of it: a group is removed only where the smaller model was shown to compute what the large one computes with the
same channels masked. What cannot be shown stays as it is, and is named.
"""

from deploykit_training.pruning.job import prune, replay
from deploykit_training.pruning.masks import finish
from deploykit_training.pruning.report import ModulePruning, PruneReport

__all__ = ["ModulePruning", "PruneReport", "finish", "prune", "replay"]
