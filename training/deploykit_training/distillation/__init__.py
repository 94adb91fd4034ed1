"""Distillation: a small network learns from a large one's outputs, features, and relations between samples.

`distill` is `deploykit.distill`; `Response`, `Feature` and `Relation` are the losses, which can be added and weighted.
"""

from deploykit_training.distillation.distiller import Distiller, distill
from deploykit_training.distillation.loop import History
from deploykit_training.distillation.terms import Feature, Relation, Response, Term, Terms

__all__ = ["Distiller", "Feature", "History", "Relation", "Response", "Term", "Terms", "distill"]
