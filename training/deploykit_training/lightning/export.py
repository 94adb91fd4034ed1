"""`Export`: a Lightning run ends with proved artifacts for its targets, and their figures in its loggers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer

from deploykit.contract.errors import DeploykitError, GateError, UsageError
from deploykit.pipeline.export import export
from deploykit_training.lightning.placed import Placed, log
from deploykit_training.lightning.quantization import QuantizationAwareTraining

if TYPE_CHECKING:
    from deploykit.plugin.artifact import Artifact


class Export(Placed):
    """Write an artifact for each target at the end of `fit`, by the first process, and log parity.

    A target that a `QuantizationAwareTraining` of the same trainer trained for gets what was trained. Others are
    exported from the float model with ranges of the calibration data, as `deploykit.export` does.

    Args:
        targets: as `deploykit.export` takes them.
        precision: the precision of all targets.
        output: folder; each artifact is a folder in it, named for its target.
        strict: raise after the last target where one missed a gate, or could not be made; False logs and goes on.
        profile: measure latency and memory.
        arguments: further ones of `deploykit.export`, such as `tolerance` or `evaluate`.
        **placed: see `Placed`; read for targets that were not trained for.

    Attributes:
        artifacts: the artifacts, by target, those that were written.
        failures: why a target has no artifact, or why its artifact failed its gates, by target.
    """

    def __init__(
        self,
        targets: Sequence[str],
        precision: str = "int8",
        *,
        output: str | Path = "artifacts",
        strict: bool = True,
        profile: bool = False,
        arguments: Mapping[str, Any] | None = None,
        **placed: Any,
    ) -> None:
        if isinstance(targets, str) or not targets:
            raise UsageError(f"targets is {targets!r}, not a list of names", hint='targets=["x86-cpu"]')
        for target in reversed(targets):  # the last one made is the first, and all are checked now
            super().__init__(target, precision, **placed)
        self.targets, self.output, self.strict = tuple(targets), Path(output), strict
        self._arguments = {"profile": profile, "progress": False, **(arguments or {})}
        self._placed_arguments = {k: v for k, v in placed.items() if k in _EXPORTED}
        self.artifacts: dict[str, Artifact] = {}
        self.failures: dict[str, DeploykitError] = {}

    @property
    def state_key(self) -> str:
        """One for each list of targets."""
        return str(self._generate_state_key(targets=list(self.targets)))

    def state_dict(self) -> dict[str, Any]:
        """Nothing: ranges are taken when they are needed."""
        return {}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: the module is validated as it is."""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: the module is tested as it is."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: the module predicts as it is."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing is refused: sharding is the training's own affair, and is refused where it cannot be exported."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export, unless this was a `fast_dev_run`."""
        runs = [each for each in trainer.callbacks if isinstance(each, QuantizationAwareTraining)]
        for run in runs:
            run.finish(trainer)
        if trainer.fast_dev_run:
            return
        if trainer.is_global_zero:
            for target in self.targets:
                self._export(trainer, pl_module, target, runs)
        trainer.strategy.barrier("deploykit export")
        if self.strict and self.failures:
            raise next(iter(self.failures.values()))

    def _export(
        self, trainer: Trainer, pl_module: LightningModule, target: str, runs: Sequence[QuantizationAwareTraining]
    ) -> None:
        output = self.output / target.replace(":", "-")
        wanted = (target, self.request.precision)
        run = next((r for r in runs if (r.request.target, r.request.precision) == wanted), None)
        try:
            if run is not None and run.trained is not None:
                artifact = run.trained.export(output=output, **self._arguments)
            else:
                artifact = self._from_float(trainer, pl_module, target, output)
        except DeploykitError as error:
            self.failures[target] = error
            if not isinstance(error, GateError) or error.candidate is None:
                return
            artifact = error.candidate
        else:
            self.artifacts[target] = artifact
        log(trainer, {f"{target}/{name}": value for name, value in _figures(artifact).items()})

    def _from_float(self, trainer: Trainer, pl_module: LightningModule, target: str, output: Path) -> Artifact:
        module = self.deployed(pl_module)
        return export(
            module,
            target,
            str(self.request.precision),
            example_inputs=self.example(trainer, pl_module),
            calibration=self.data(trainer, pl_module),
            output=output,
            **self._placed_arguments,
            **self._arguments,
        )


_EXPORTED = ("options", "include", "exclude", "calibration_method", "algorithms")


def _figures(artifact: Artifact) -> dict[str, Any]:
    """What is logged of an artifact."""
    parity, size = artifact.parity, sum(entry.size for entry in artifact.manifest.files)
    found: dict[str, Any] = {"bytes": size, "passed": float(artifact.status != "failed")}
    if parity is not None:
        found |= {"parity_sqnr_db": parity.sqnr_db, "parity_cosine": parity.cosine, "top1": parity.top1_agreement}
    profile = artifact.profile
    return found if profile is None else found | {"latency_ms": profile.latency_ms.p50}
