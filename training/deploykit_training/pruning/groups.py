"""Which channels of a model must go together: Torch-Pruning's dependency graph, as values that can be checked.

Torch-Pruning follows PyTorch's autograd graph. It guesses for whatever it has no rule for, so nothing here is
believed: `trial` removes what was chosen from a copy and compares. What is certain to fail is refused here by name.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from deploykit.contract.errors import UsageError
from deploykit.contract.optional import require
from deploykit.contract.quiet import quiet
from deploykit_training.pruning.working_copy import WorkingCopy, working_copy

Run = Callable[[nn.Module], Any]
"""Calls a model with its example inputs."""

_VISITS = 6  # of each node of the graph on average: ordinary groups visit a node once or twice
_SHUFFLES = 3  # random halves: two channels that go together fall on both sides of one with 7 in 8


@dataclass(frozen=True)
class Member:
    """One layer, or one parameter, that loses channels with a group.

    Attributes:
        path: the path of the module or of the parameter.
        kind: the kind of the layer, in Torch-Pruning's words (`CONV`, `BN`, `PARAMETER`, ...).
        role: `out` where it makes the channels, `in` where it reads them, `both` where they pass through it.
        index: channels of this layer, on the axis of its role.
        root: for each of them, the channel of the group's first layer that it goes with.
        axis: the axis of a parameter that has the channels.
    """

    path: str
    kind: str
    role: str
    index: tuple[int, ...]
    root: tuple[int, ...]
    axis: int = 0


@dataclass(frozen=True)
class Group:
    """Channels of one layer, and every layer that loses some with them.

    Attributes:
        root: path of the layer whose output channels are counted.
        channels: how many these are.
        members: all layers, the root first.
        units: channels that go together: the smallest that can be removed, as sets of the root's channels.
        refused: why none of it can be removed; empty where it can be tried.
    """

    root: str
    channels: int
    members: tuple[Member, ...]
    units: tuple[tuple[int, ...], ...]
    refused: str = ""

    @property
    def producers(self) -> tuple[str, ...]:
        """The layers that make these channels."""
        return tuple(m.path for m in self.members if m.kind in ("CONV", "LINEAR", "DEPTHWISE_CONV") and m.role != "in")


class Dependencies:
    """Torch-Pruning's graph of a copy of a model.

    Args:
        model: left alone; a copy of it is traced.
        run: calls a model with its example inputs.
    Raises:
        MissingDependencyError: torch-pruning is not installed.
        UsageError: the model cannot be copied or traced by Torch-Pruning.
    """

    def __init__(self, model: nn.Module, run: Run) -> None:
        self._tp = require("torch_pruning", extra="train", purpose="prune channels")
        self.copy: WorkingCopy = working_copy(model)
        self._graph = self._tp.DependencyGraph()
        try:
            with quiet(), torch.enable_grad():
                self._graph.build_dependency(
                    self.copy.model,
                    example_inputs=None,
                    forward_fn=lambda m, _: run(m),
                    ignored_layers=[m for m in self.copy.model.modules() if isinstance(m, nn.RNNBase)],
                )
        except Exception as error:  # it asserts, indexes and unpacks
            raise UsageError(
                f"Torch-Pruning cannot follow {type(model).__name__}: {type(error).__name__}: {error}",
                hint='forward must be differentiable from outputs to weights; kind="unstructured" needs no trace',
            ) from error
        self._roots = (nn.modules.conv._ConvNd, nn.Linear)
        self._paths = {module: path for path, module in self.copy.model.named_modules()}

    def groups(self) -> list[Group]:
        """Every group of the model, in the order of the trace backwards; what cannot be tried says why."""
        found: list[Group] = []
        with quiet():
            for module in list(self._graph.module2node):
                made = {path for group in found for path in group.producers}
                path = self._paths.get(module) if isinstance(module, self._roots) else None
                if path is not None and path not in made:
                    found.append(self._group_of(path))
        return found

    def members(self, root: str, index: Iterable[int]) -> tuple[Member, ...]:
        """What removing these channels of a root takes from which layer."""
        with quiet():
            group, kept = self._group(root, index), []
            for item in group:
                member = self._member(item)
                if member is not None:
                    kept.append(member)
        return tuple(kept)

    def remove(self, root: str, index: Iterable[int]) -> None:
        """Remove channels from the copy, in every layer of the group."""
        with quiet():
            group = self._group(root, index)
            if not self._graph.check_pruning_group(group):
                raise ValueError("a layer of the group would have no channels left")
            group.prune()

    def _group_of(self, root: str) -> Group:
        channels = int(self._graph.get_out_channels(self.copy.model.get_submodule(root)))
        everything = tuple(range(channels))
        try:
            return self._described(self._group(root, everything))
        except RecursionError as error:
            own = Member(root, "CONV", "out", everything, everything)
            return Group(root, channels, (own,), (), str(error))

    def _group(self, root: str, index: Iterable[int]) -> Any:
        module = self.copy.model.get_submodule(root)
        pruner = self._graph.get_pruner_of_module(module)
        with self._bounded():
            return self._graph.get_pruning_group(module, pruner.prune_out_channels, sorted(index))

    @contextmanager
    def _bounded(self) -> Iterator[None]:
        """Torch-Pruning may walk in circles (grouped queries do that): it collects what it visits in a `Group`."""
        home: Any = importlib.import_module("torch_pruning.dependency.graph")
        had, most = home.Group, _VISITS * len(self._graph.module2node) + 100

        class Bounded(had):  # type: ignore[misc, valid-type]
            def add_dep(self, dep: Any, idxs: Any) -> None:
                if len(self._group) > most:
                    raise RecursionError("Torch-Pruning follows its channels in circles")
                super().add_dep(dep, idxs)

        home.Group = Bounded
        try:
            yield
        finally:
            home.Group = had

    def _described(self, group: Any) -> Group:
        root = self._paths[group[0].dep.target.module]
        channels = int(self._graph.get_out_channels(group[0].dep.target.module))
        members = tuple(m for m in map(self._member, group) if m is not None)
        refused = self._refusal(group) or self._misread(members) or self.copy.tied(member.path for member in members)
        units = () if refused else self._units(root, channels, members)
        return Group(root, channels, members, units, refused)

    def _member(self, item: Any) -> Member | None:
        """None for what has no weights: an addition, a reshape."""
        node, types = item.dep.target, self._tp.ops.OPTYPE
        kind = types(node.type).name
        role = self._role(item.dep.handler)
        root = tuple(item.root_idxs or item.idxs)
        if node.type == types.PARAMETER:
            name = self._graph._param_to_name[node.module]
            return Member(name, kind, "both", tuple(item.idxs), root, int(node.pruning_dim))
        if node.module not in self._paths:
            return None
        return Member(self._paths[node.module], kind, role, tuple(item.idxs), root)

    def _role(self, handler: Any) -> str:
        out, into = self._graph.is_out_channel_pruning_fn(handler), self._graph.is_in_channel_pruning_fn(handler)
        return "both" if out and into else "out" if out else "in"

    def _refusal(self, group: Any) -> str:
        """What is known to go wrong, before anything is tried."""
        types = self._tp.ops.OPTYPE
        for item in group:
            node, role = item.dep.target, self._role(item.dep.handler)
            if node.type == types.OUTPUT or (not node.outputs and role != "in"):
                return "its channels are an output of the model"
            if node.type in (types.MHA, types.LSTM):
                what = "attention heads" if node.type == types.MHA else "gates of a recurrent layer"
                return f"{self._paths[node.module]} splits its channels into {what}"
        readers = (i for i in group if i.dep.target.type in (types.CONV, types.LINEAR))
        if not any(self._role(item.dep.handler) == "in" for item in readers):
            return "no layer reads its channels"
        return ""

    def _misread(self, members: Sequence[Member]) -> str:
        """A layer of which Torch-Pruning counts more channels than it has: a split that it took for something else."""
        for member in members:
            if member.kind == "PARAMETER":
                continue
            layer = self.copy.model.get_submodule(member.path)
            read = self._graph.get_in_channels if member.role == "in" else self._graph.get_out_channels
            width = read(layer)
            if width is not None and max(member.index, default=0) >= width:
                return f"Torch-Pruning counts {max(member.index) + 1} channels of {member.path}, which has {width}"
        return ""

    def _units(self, root: str, channels: int, members: Sequence[Member]) -> tuple[tuple[int, ...], ...]:
        """The smallest sets that can go: what `chunk` couples, and the same place in every group of a grouped layer."""
        sets = _Sets(channels)
        if self._couples(root, channels):
            for channel in range(channels):
                sets.join(channel, self._closure(root, [channel]))
        groups = self._channel_groups(members)
        if channels % groups == 0:
            for channel in range(channels // groups):
                sets.join(channel, range(channel, channels, channels // groups))
        return sets.all()

    def _couples(self, root: str, channels: int) -> bool:
        """Whether removing some channels takes others of the same layer along."""
        generator = torch.Generator().manual_seed(0)
        for _ in range(_SHUFFLES):
            half = torch.randperm(channels, generator=generator)[: max(channels // 2, 1)].tolist()
            if self._closure(root, half) != set(half):
                return True
        return False

    def _closure(self, root: str, index: Iterable[int]) -> set[int]:
        return {i for m in self.members(root, index) if m.path == root and m.role != "in" for i in m.index}

    def _channel_groups(self, members: Sequence[Member]) -> int:
        found = 1
        for member in members:
            if member.kind == "CONV":
                found = math.lcm(found, int(self.copy.model.get_submodule(member.path).groups))  # type: ignore[arg-type]
            elif member.kind == "GN":
                found = math.lcm(found, int(self.copy.model.get_submodule(member.path).num_groups))  # type: ignore[arg-type]
        return found


class _Sets:
    """Channels that go together (union-find)."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def find(self, item: int) -> int:
        while self._parent[item] != item:
            item = self._parent[item] = self._parent[self._parent[item]]
        return item

    def join(self, first: int, others: Iterable[int]) -> None:
        for other in others:
            self._parent[self.find(other)] = self.find(first)

    def all(self) -> tuple[tuple[int, ...], ...]:
        found: dict[int, list[int]] = {}
        for item in range(len(self._parent)):
            found.setdefault(self.find(item), []).append(item)
        return tuple(sorted(tuple(each) for each in found.values()))


def parts(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds a parameter or buffer, and its name there."""
    owner, _, name = path.rpartition(".")
    return root.get_submodule(owner), name


def layers_of(groups: Iterable[Group]) -> Iterator[str]:
    """Paths of all layers that make channels of these groups."""
    for group in groups:
        yield from group.producers
