"""The losses of distillation. Each is a small module that is given what student and teacher computed.

Terms are added (`Response() + Feature({"layer2": "layer3"})`) and weighted (`0.5 * Relation()`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import UninitializedParameter

from deploykit.contract.errors import UsageError


@dataclass
class Seen:
    """What one side computed for a batch.

    Attributes:
        logits: its first output, float.
        features: output of every module that was asked for, by path.
    """

    logits: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)


class Term(nn.Module):
    """One loss, or a sum of weighted ones."""

    weight: float = 1.0

    @property
    def student_modules(self) -> tuple[str, ...]:
        """Paths of the student's modules that it looks at."""
        return ()

    @property
    def teacher_modules(self) -> tuple[str, ...]:
        """Paths of the teacher's modules that it looks at."""
        return ()

    def parts(self) -> Iterator[tuple[str, Term]]:
        """Its own losses by name."""
        yield type(self).__name__.lower(), self

    def forward(self, student: Seen, teacher: Seen) -> Tensor:
        """The loss of a batch, a scalar, not weighted.

        Args:
            student, teacher: their outputs or features for the same batch; gradients flow into the student's.
        """
        raise NotImplementedError

    def __add__(self, other: Term) -> Terms:
        return Terms([*(part for _, part in self.parts()), *(part for _, part in other.parts())])

    def __mul__(self, factor: float) -> Term:
        """A copy, weighted by `factor` more."""
        found = copy.deepcopy(self)
        for _, part in found.parts():
            part.weight = part.weight * float(factor)
        return found

    __rmul__ = __mul__


class Terms(Term):
    """A sum of losses."""

    def __init__(self, terms: list[Term]) -> None:
        super().__init__()
        self.terms = nn.ModuleList(terms)

    @property
    def student_modules(self) -> tuple[str, ...]:
        """Paths of the student's modules that any of them looks at."""
        return tuple(path for _, part in self.parts() for path in part.student_modules)

    @property
    def teacher_modules(self) -> tuple[str, ...]:
        """Paths of the teacher's modules that any of them looks at."""
        return tuple(path for _, part in self.parts() for path in part.teacher_modules)

    def parts(self) -> Iterator[tuple[str, Term]]:
        """The losses that are added, by name; a second one of a kind is numbered."""
        counts: dict[str, int] = {}
        for term in self.terms:
            assert isinstance(term, Term)
            for name, part in term.parts():
                counts[name] = counts.get(name, 0) + 1
                yield (name if counts[name] == 1 else f"{name}{counts[name]}"), part

    def forward(self, student: Seen, teacher: Seen) -> Tensor:
        """The weighted sum."""
        return torch.stack([part.weight * part(student, teacher) for _, part in self.parts()]).sum()


class Response(Term):
    """The student's answers like the teacher's, softened (Hinton et al. 2015).

    `T^2 KL(softmax(teacher / T) || softmax(student / T))`, the mean over samples; T^2 keeps its gradients as large as
    those of the task's loss whatever T. Where targets are given, the whole is `alpha` of this and `1 - alpha` of the
    task's loss.

    Args:
        temperature: T, above 0.
        alpha: 0 to 1.
    """

    def __init__(self, temperature: float = 4.0, alpha: float = 0.7) -> None:
        super().__init__()
        if not 0.0 < temperature < math.inf or not 0.0 <= alpha <= 1.0:
            message = f"Response(temperature={temperature}, alpha={alpha}): temperature is above 0, alpha from 0 to 1"
            raise UsageError(message, hint="Response(temperature=4, alpha=0.7)")
        self.temperature, self.alpha = float(temperature), float(alpha)

    def forward(self, student: Seen, teacher: Seen) -> Tensor:
        """Logits of shape (batch, classes, ...), classes on axis 1; vectors of one sample on the last."""
        s, t = student.logits.float(), teacher.logits.float()
        if s.shape != t.shape:
            raise UsageError(
                f"the student answers with {list(s.shape)}, the teacher with {list(t.shape)}: no class is like another",
                hint="give both the same classes, or distil with Feature or Relation",
            )
        axis = min(1, s.dim() - 1)
        T = self.temperature  # noqa: N806 - the publication's name
        divergence = F.kl_div((s / T).log_softmax(axis), (t / T).log_softmax(axis), reduction="none", log_target=True)
        return T * T * divergence.sum(axis).mean()


class Feature(Term):
    """The student's features like the teacher's (FitNets, Romero et al. 2015): mean squared error.

    Where a student's module has other channels than the teacher's, a projection (a 1x1 convolution, or a linear layer
    without bias) is trained with it; it is created when shapes are first seen, and is no part of the student. Of maps
    of other sizes, the larger is averaged down.

    Args:
        modules: path of a student's module -> path of a teacher's.
    """

    def __init__(self, modules: Mapping[str, str]) -> None:
        super().__init__()
        if not modules or not all(isinstance(path, str) for pair in modules.items() for path in pair):
            raise UsageError("Feature takes paths of modules", hint='Feature({"layer2": "layer3"}): student -> teacher')
        self.modules_of = dict(modules)
        self.projections = nn.ModuleList([Projection() for _ in modules])

    @property
    def student_modules(self) -> tuple[str, ...]:
        """The mapping's keys."""
        return tuple(self.modules_of)

    @property
    def teacher_modules(self) -> tuple[str, ...]:
        """The mapping's values."""
        return tuple(self.modules_of.values())

    def forward(self, student: Seen, teacher: Seen) -> Tensor:
        """The mean over the pairs of modules."""
        losses = []
        for (own, other), project in zip(self.modules_of.items(), self.projections, strict=True):
            s, t = student.features[own].float(), teacher.features[other].float()
            if s.dim() != t.dim() or s.shape[0] != t.shape[0]:
                raise UsageError(
                    f"{own} of the student gives {list(s.shape)}, {other} of the teacher {list(t.shape)}",
                    hint="choose modules whose outputs have the same number of axes",
                )
            s, t = _same_places(project(s, _channels(t)), t, own, other)
            losses.append(F.mse_loss(s, t))
        return torch.stack(losses).mean()


class Projection(nn.Module):
    """A student's channels as a teacher's: a matrix over the channel axis, unknown until both are seen.

    It is the identity, and is not trained, where both have as many.
    """

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = UninitializedParameter()

    def forward(self, x: Tensor, channels: int) -> Tensor:
        """Axis 1 of maps (four axes and more, or convolutional), the last of vectors and tokens."""
        own = _channels(x)
        if isinstance(self.weight, UninitializedParameter):
            self._create(channels, own, x.device)
        if own == channels:
            return x
        axis = _axis(x)
        return F.linear(x.movedim(axis, -1), self.weight).movedim(-1, axis)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Nothing as long as its size is unknown."""
        if not isinstance(self.weight, UninitializedParameter):
            super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        """The size is that of what is loaded; where there is nothing, it stays unknown."""
        stored = state_dict.get(f"{prefix}weight")
        if isinstance(self.weight, UninitializedParameter):
            if stored is None:
                return
            self.weight.materialize(stored.shape, dtype=stored.dtype)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    @torch.no_grad()
    def _create(self, channels: int, own: int, device: torch.device) -> None:
        """A random matrix with a seed of its own, scaled to keep the variance."""
        assert isinstance(self.weight, UninitializedParameter)
        size = (0, own) if own == channels else (channels, own)
        self.weight.materialize(size, device=device, dtype=torch.float32)
        drawn = torch.randn(size, generator=torch.Generator().manual_seed(0)) / math.sqrt(max(own, 1))
        self.weight.copy_(drawn)


class Relation(Term):
    """Distances and angles between samples like the teacher's (RKD, Park et al. 2019).

    Distances between all pairs of a batch, divided by their mean, and cosines of the angles of all triples; the Huber
    loss of each. The student's vectors may have another length than the teacher's.

    Args:
        distance, angle: weights of the two.
        modules: one pair {student's path: teacher's path} whose outputs are compared; None for the models' outputs.
    """

    def __init__(self, distance: float = 1.0, angle: float = 2.0, *, modules: Mapping[str, str] | None = None) -> None:
        super().__init__()
        if modules is not None and len(modules) != 1:
            raise UsageError(
                "Relation compares one pair of modules", hint='add one Relation(modules={"a": "b"}) for each'
            )
        self.distance, self.angle = float(distance), float(angle)
        self.modules_of = dict(modules or {})

    @property
    def student_modules(self) -> tuple[str, ...]:
        """The student's module, if one was named."""
        return tuple(self.modules_of)

    @property
    def teacher_modules(self) -> tuple[str, ...]:
        """The teacher's module, if one was named."""
        return tuple(self.modules_of.values())

    def forward(self, student: Seen, teacher: Seen) -> Tensor:
        """Vectors are the outputs, flattened but for the batch; time and memory grow with its cube (angles)."""
        s, t = student.logits, teacher.logits
        for own, other in self.modules_of.items():
            s, t = student.features[own], teacher.features[other]
        s, t = s.float().flatten(1), t.float().flatten(1)
        loss = s.sum() * 0.0
        if self.distance and len(s) > 1:
            loss = loss + self.distance * F.smooth_l1_loss(_distances(s), _distances(t))
        if self.angle and len(s) > 2:
            loss = loss + self.angle * F.smooth_l1_loss(_angles(s), _angles(t))
        return loss


def _distances(x: Tensor) -> Tensor:
    """Euclidean distances of all pairs, divided by their mean, shape (batch, batch)."""
    square = x.square().sum(1)
    found = (square[:, None] + square[None] - 2 * x @ x.T).clamp_min(1e-12).sqrt()
    found = found * (1 - torch.eye(len(x), device=x.device))
    return found / (found.sum() / (len(x) * (len(x) - 1))).clamp_min(1e-12)


def _angles(x: Tensor) -> Tensor:
    """Cosine of the angle at each sample between each two others, shape (batch, batch, batch)."""
    lines = F.normalize(x[None] - x[:, None], dim=2)
    return lines @ lines.transpose(1, 2)


def _axis(x: Tensor) -> int:
    return 1 if x.dim() > 3 else x.dim() - 1


def _channels(x: Tensor) -> int:
    return int(x.shape[_axis(x)])


def _same_places(s: Tensor, t: Tensor, own: str, other: str) -> tuple[Tensor, Tensor]:
    """Average the larger of two maps down."""
    if s.shape == t.shape:
        return s, t
    if s.dim() != 4:
        raise UsageError(
            f"{own} of the student gives {list(s.shape)}, {other} of the teacher {list(t.shape)} after projection",
            hint="choose modules whose outputs have the same places (tokens, frames)",
        )
    size = (min(s.shape[2], t.shape[2]), min(s.shape[3], t.shape[3]))
    return F.adaptive_avg_pool2d(s, size), F.adaptive_avg_pool2d(t, size)


def as_term(terms: Any) -> Term:
    """What a user passed as losses.

    Raises:
        UsageError: it is none.
    """
    if isinstance(terms, Term):
        return terms
    raise UsageError(f"losses are terms, not a {type(terms).__name__}", hint="Response() + Relation()")
