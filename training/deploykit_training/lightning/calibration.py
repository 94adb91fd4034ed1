"""`Calibration`: a Lightning run ends with the ranges of its model; `validate` and `test` compute as the target."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer

from deploykit_training.lightning.placed import Placed


class Calibration(Placed):
    """Post-training quantisation: `fit` trains in float and takes ranges at its end; `validate` and `test` are rounded.

    Arguments are those of `Placed`. The ranges are in the callback's state, and at `table`, which
    `deploykit.export(calibration=...)` takes for the model as it is then.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the ranges of the trained model."""
        self._resumes = False
        self.renew()
        self.placed(trainer, pl_module)
