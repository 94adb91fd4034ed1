"""A live forward that gives a loss for labels, as the models of Hugging Face do.

Labels are no part of what is deployed and are not captured; the loss is the one that the model's class has
(`loss_function`). Where a class computes its own in forward, the way out is the Trainer's `compute_loss_func`.
"""

from __future__ import annotations

from typing import Any

import torch

from deploykit.contract.errors import UsageError
from deploykit_training.forward import LiveForward


class LossForward(LiveForward):
    """Takes labels beside what was captured, and computes in half precision where the Trainer asks for it.

    Attributes:
        autocast: dtype that the graph computes in; None for float32.
    """

    autocast: torch.dtype | None = None

    def __call__(self, *args: Any, labels: Any = None, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
        """Run the live graph; with labels the result has a `loss`."""
        kwargs.pop("return_dict", None)
        device = next(self.module.parameters()).device.type
        with torch.autocast(device, dtype=self.autocast, enabled=self.autocast is not None):
            result = super().__call__(*args, **kwargs)
        if labels is None:
            return result
        logits = result.get("logits") if isinstance(result, dict) else None
        function = getattr(self.module, "loss_function", None)
        if logits is None or function is None:
            raise UsageError(
                f"{type(self.module).__name__} has no loss that is known outside of its forward",
                hint="give the Trainer compute_loss_func=fn(outputs, labels, num_items_in_batch)",
            )
        items = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
        config = self.module.config
        known = {"config": config, "vocab_size": getattr(config, "vocab_size", None), **items}
        loss = function(labels=labels, logits=logits.float(), pooled_logits=logits.float(), **known)
        return type(result)(**{**result, "loss": loss})

    def __deepcopy__(self, memo: dict[int, Any]) -> LossForward:
        copied = super().__deepcopy__(memo)
        assert isinstance(copied, LossForward)
        copied.autocast = self.autocast
        return copied
