"""`Pruning`: a Lightning run begins with a pruned module; a run that resumes has the same channels and masks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deploykit.contract.errors import UsageError
from deploykit_training.lightning.placed import log
from deploykit_training.lightning.submodules import submodule
from deploykit_training.pruning import masks
from deploykit_training.pruning.job import prune, replay
from deploykit_training.pruning.report import PruneReport
from deploykit_training.pruning.working_copy import left_out, transplant


class Pruning(Callback):  # type: ignore[misc]
    """Prune before the optimizer is made, and hold zeros where they are until `fit` ends.

    Of several processes the first one decides which channels go. What went is in the callback's state: `fit`,
    `validate` and `test` with `ckpt_path=` prune the module the same way before its weights are loaded. The module's
    `state_dict` has no key of it.

    Args:
        ratio, kind, **arguments: as `deploykit.prune` takes them.
        module: dotted path of the submodule that is pruned; "" is the LightningModule itself.
        example_inputs: the example inputs of that module; None takes its `example_input_array`.
        keep_masks: leave the masks on after `fit`, for another run.

    Attributes:
        report: the report of the pruning; None before it, and where a checkpoint was taken up.
    """

    def __init__(
        self,
        ratio: float | Mapping[str, float] = 0.5,
        kind: str = "structured",
        *,
        module: str = "",
        example_inputs: Any = None,
        keep_masks: bool = False,
        **arguments: Any,
    ) -> None:
        super().__init__()
        if "inplace" in arguments:
            raise UsageError("the module that is trained is pruned in place", hint="leave inplace out")
        self.ratio, self.kind, self.module, self.keep_masks = ratio, kind, module, keep_masks
        self._example, self._arguments = example_inputs, arguments
        self.report: PruneReport | None = None
        self._removed: dict[str, tuple[int, ...]] = {}
        self._masked: tuple[str, ...] = ()
        self._pruned: nn.Module | None = None
        self._whole: nn.Module | None = None
        self._hooked = False

    @property
    def state_key(self) -> str:
        """One for each kind and submodule."""
        return str(self._generate_state_key(kind=self.kind, module=self.module))

    def state_dict(self) -> dict[str, Any]:
        """Which channels went, or which layers have masks; plain values, which are safe to load."""
        return {"removed": {k: list(v) for k, v in self._removed.items()}, "masked": list(self._masked)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the layers that had masks: what is zero in the loaded weights is held there."""
        self._masked = tuple(state_dict.get("masked", ()))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove channels before the optimizer is made, or those of a checkpoint before its weights are loaded."""
        module = self.deployed(pl_module)
        if self.kind != "structured":
            return
        had = pl_module.on_load_checkpoint
        pl_module.on_load_checkpoint = lambda checkpoint: self._before_loading(module, checkpoint, stage, had)
        self._hooked = True
        if self._pruned is not module and stage == "fit":
            self._whole = copy.deepcopy(module, left_out(module))
            removed = self._decide(trainer, module)
            if self.report is None:
                replay(module, self.example(), removed)
            self._removed, self._pruned = removed, module

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set masks: behind the loading of a checkpoint, whose zeros are then the masks."""
        module = self.deployed(pl_module)
        self._unhook(pl_module)
        if self.kind != "structured":
            self._mask(module)
        if self.report is not None:
            found = self.report
            log(trainer, {"pruning/sparsity": found.sparsity, "pruning/macs": found.macs_after})

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take masks away, unless they shall stay."""
        del trainer
        if self.kind != "structured" and not self.keep_masks:
            masks.finish(self.deployed(pl_module))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the module its own hook back."""
        del trainer, stage
        self._unhook(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the module its own hook back."""
        del trainer, exception
        self._unhook(pl_module)

    def deployed(self, pl_module: LightningModule) -> nn.Module:
        """The module that is pruned.

        Raises:
            UsageError: there is no such submodule.
        """
        return submodule(pl_module, self.module)

    def example(self) -> Any:
        """Example inputs on the CPU; None where the module itself is asked."""
        return pytree.tree_map_only(Tensor, lambda x: x.detach().cpu(), self._example)

    def _decide(self, trainer: Trainer, module: nn.Module) -> dict[str, tuple[int, ...]]:
        self.report = self._prune(module) if trainer.is_global_zero else None
        removed = None if self.report is None else dict(self.report.removed)
        found: dict[str, tuple[int, ...]] = trainer.strategy.broadcast(removed)
        return found

    def _prune(self, module: nn.Module) -> PruneReport:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
            return prune(module, self.example(), self.ratio, self.kind, **self._arguments)

    def _mask(self, module: nn.Module) -> None:
        if masks.masks_of(module):
            return
        if not self._masked:
            self.report = self._prune(module)
            self._masked = tuple(masks.masks_of(module))
            return
        for path in self._masked:
            weight: Any = module.get_submodule(path).weight
            masks.attach(module, path, weight.detach() != 0)

    def _before_loading(self, module: nn.Module, checkpoint: dict[str, Any], stage: str, had: Any) -> None:
        """The module gets the shapes of a checkpoint that is about to be loaded."""
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if state is None and stage == "fit":
            raise UsageError(
                "the checkpoint is of a run without this Pruning, and its weights have the shapes of before",
                hint="load them first (load_from_checkpoint), and fit without ckpt_path=",
            )
        removed = {} if state is None else {root: tuple(index) for root, index in state["removed"].items()}
        if removed and (self._pruned is not module or removed != self._removed):
            if self._pruned is module and self._whole is not None:
                transplant(self._whole, module)
            replay(module, self.example(), removed)
            self._removed, self._pruned = removed, module
        had(checkpoint)

    def _unhook(self, pl_module: LightningModule) -> None:
        if self._hooked:
            pl_module.__dict__.pop("on_load_checkpoint", None)
        self._hooked, self._whole = False, None
