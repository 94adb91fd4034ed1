"""An MLflow flavour: an artifact as a model of MLflow's tracking and registry, its folder unchanged inside of it.

    import deploykit_trust.mlflow as flavour
    flavour.log_model("out/net", name="net")                   # in a run, or without one
    artifact = flavour.load_model("models:/m-...", key="pub.pem")
    mlflow.pyfunc.load_model(uri, model_config={"key": "pub.pem"}).predict({"x": array})

MLflow is the user's own (`pip install mlflow`); nothing of it is imported before it is asked for. What MLflow hands
back is checked like any artifact. `mlflow.pyfunc` itself runs the loader that a logged model names, whoever logged it:
for models of strangers use `load_model` with a key.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit._version import __version__
from deploykit.contract.errors import ArtifactError, UsageError
from deploykit.contract.optional import require
from deploykit.plugin.artifact import Artifact, load

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from deploykit.contract.session import Session
    from deploykit.contract.tensors import TensorSpec

FLAVOR_NAME = "deploykit"
FOLDER = "artifact"
"""Of an MLflow model: holds the artifact."""
_CONFIG: dict[str, Any] = {"key": "", "allow_native": False, "threads": 0}
"""What `model_config` may change; MLflow passes over what a logged model does not declare."""


def save_model(artifact: str | Path, path: str | Path, mlflow_model: Any = None, **described: Any) -> None:
    """Write an artifact as an MLflow model, as every flavour does.

    Args:
        artifact: its folder; every hash is checked first.
        path: folder of the model, which must not exist.
        mlflow_model: the `mlflow.models.Model` to describe it in; None for a new one.
        described: `metadata` of the model.
    Raises:
        ArtifactError: the artifact is damaged.
        UsageError: `path` exists, or something else is described.
        MissingDependencyError: MLflow is not installed.
    """
    models = _models()
    found, folder = load(artifact), Path(path)
    unknown = sorted(described.keys() - {"metadata", "signature"})
    if unknown:
        raise UsageError(f"the flavour of deploykit takes no {', '.join(unknown)}")
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} exists", hint="choose another path")
    shutil.copytree(found.path, folder / FOLDER)
    model = models.Model() if mlflow_model is None else mlflow_model
    model.signature = described.get("signature") or _signature(found)
    if described.get("metadata"):
        model.metadata = described["metadata"]
    model.add_flavor(FLAVOR_NAME, deploykit_version=__version__, data=FOLDER, **_facts(found))
    _pyfunc().add_to_model(model, loader_module=__name__, data=FOLDER, model_config=_CONFIG)
    model.save(str(folder / "MLmodel"))


def log_model(artifact: str | Path, name: str, **given: Any) -> Any:
    """Log an artifact to MLflow's tracking server, and register it where `registered_model_name` is given.

    Args:
        artifact: its folder.
        name: of the logged model.
        given: as `mlflow.models.Model.log` takes them.
    Returns:
        MLflow's `ModelInfo`.
    """
    import sys

    own = {"flavor": sys.modules[__name__], "artifact": str(artifact), "artifact_path": None}
    return _models().Model.log(name=name, **own, **given)


def load_model(model_uri: str, *, key: str | Path | None = None, output: str | Path | None = None) -> Artifact:
    """Fetch an artifact that was logged, and load it.

    Args:
        model_uri: as MLflow takes it (`models:/...`, `runs:/...`).
        key: as for `deploykit.load`.
        output: folder to download to; None for MLflow's own temporary one.
    Raises:
        ArtifactError: what came back holds no artifact, is damaged, or is not signed by the key.
        MissingDependencyError: MLflow is not installed.
    """
    require("mlflow", extra="", purpose="fetch models from MLflow")
    from mlflow.artifacts import download_artifacts

    target = None if output is None else str(output)
    folder = Path(download_artifacts(artifact_uri=model_uri, dst_path=target))
    if not (folder / FOLDER).is_dir():
        raise ArtifactError(f"{model_uri} holds no artifact of deploykit", hint="was it logged with this flavour?")
    return load(folder / FOLDER, key=key)


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> _Predictor:
    """What `mlflow.pyfunc.load_model` calls; `model_config` has `key`, `allow_native` and `threads`."""
    config = dict(model_config or {})
    unknown = sorted(config.keys() - _CONFIG.keys())
    if unknown:
        raise UsageError(f"model_config takes {', '.join(sorted(_CONFIG))}, not {', '.join(unknown)}")
    found = load(path, key=config.get("key") or None, allow_native=config.get("allow_native") is True)
    return _Predictor(found.open(threads=config.get("threads") or None))


class _Predictor:
    """A session as MLflow calls a model: arrays by name, or one array for a model with one input."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> dict[str, np.ndarray]:
        """Run one batch; outputs by name."""
        del params
        if not isinstance(data, dict):
            if len(self._session.inputs) != 1:
                names = ", ".join(spec.name for spec in self._session.inputs)
                raise UsageError(f"the model takes {names}", hint="predict({name: array, ...})")
            data = {self._session.inputs[0].name: data}
        return dict(self._session.run(data))


def _models() -> Any:
    require("mlflow", extra="", purpose="log artifacts to MLflow")
    import mlflow.models

    return mlflow.models


def _pyfunc() -> Any:
    import mlflow.pyfunc

    return mlflow.pyfunc


def _facts(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    return {
        "target": manifest.target,
        "precision": manifest.precision.value,
        "status": manifest.status,
        "fingerprint": artifact.fingerprint,
    }


def _signature(artifact: Artifact) -> Any:
    """Inputs and outputs in MLflow's own words; a dynamic size is -1."""
    from mlflow.models.signature import ModelSignature
    from mlflow.types.schema import Schema
    from mlflow.types.schema import TensorSpec as Described

    def schema(specs: tuple[TensorSpec, ...]) -> Any:
        import numpy as np

        sizes = [tuple(size if isinstance(size, int) else -1 for size in spec.shape) for spec in specs]
        named = zip(specs, sizes, strict=True)
        return Schema([Described(np.dtype(spec.dtype), shape or (1,), spec.name) for spec, shape in named])

    return ModelSignature(inputs=schema(artifact.inputs), outputs=schema(artifact.outputs))
