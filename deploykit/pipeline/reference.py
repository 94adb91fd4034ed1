"""The float model as a `Session`: the first stage of every parity chain. Needs PyTorch, imported when called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from deploykit.contract.session import FunctionSession
from deploykit.contract.tensors import Feeds

if TYPE_CHECKING:
    import torch

    from deploykit.capture import CapturedModel


def reference_session(captured: CapturedModel) -> FunctionSession:
    """Wrap the captured float graph; it runs in PyTorch with the thread count that PyTorch is set to."""
    import torch

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            return to_arrays(captured.run({name: torch.from_numpy(array) for name, array in feeds.items()}))

    return FunctionSession(run, captured.inputs, captured.outputs, threads=torch.get_num_threads())


def to_arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Named tensors to named arrays; memory is shared where it can be."""
    return {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}
