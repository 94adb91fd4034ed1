"""MLflow with a database of its own in SQLite: what is logged comes back as it was, is registered, and predicts."""

import os

import numpy as np
import pytest

import deploykit
from deploykit.contract.errors import ArtifactError, MissingDependencyError, UsageError
from deploykit_trust import mlflow as flavour
from deploykit_trust.signing import sign

mlflow = pytest.importorskip("mlflow", reason="`tox -e interop` installs MLflow")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # MLflow's own, of its dependencies
]


@pytest.fixture(scope="module", autouse=True)
def tracking(tmp_path_factory):
    """A database and a store for this module, made once: MLflow takes seconds for it."""
    folder = tmp_path_factory.mktemp("mlflow")
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.create_experiment("tests", artifact_location=(folder / "store").as_uri())
    mlflow.set_experiment("tests")


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_logged_comes_back_signed_and_predicts(artifact, keys, toy, tmp_path):
    sign(artifact, keys["private"])
    info = flavour.log_model(artifact, name="net", registered_model_name="net")
    assert info.flavors["deploykit"]["fingerprint"] == deploykit.load(artifact).fingerprint
    for uri in (info.model_uri, "models:/net/1"):
        found = flavour.load_model(uri, key=keys["public"])
        assert contents(found.path) == contents(artifact)
    with pytest.raises(ArtifactError, match="another key"):
        flavour.load_model(info.model_uri, key=keys["other"])
    model = mlflow.pyfunc.load_model(info.model_uri, model_config={"key": str(keys["public"]), "threads": 1})
    x = np.ones((1, 4), np.float32)
    assert np.array_equal(model.predict({"x": x})["output"], x @ toy.MATRIX)
    assert [spec.name for spec in model.metadata.signature.inputs.inputs] == ["x"]


def test_native_code_needs_the_key_there_too(artifact, keys, toy, monkeypatch):
    monkeypatch.setattr(toy.ToyTarget, "native_code", lambda self, artifact: "machine code")
    sign(artifact, keys["private"])
    info = flavour.log_model(artifact, name="native")
    with pytest.raises(ArtifactError, match="was not made here"):
        mlflow.pyfunc.load_model(info.model_uri)
    mlflow.pyfunc.load_model(info.model_uri, model_config={"key": str(keys["public"])})
    with pytest.raises(UsageError, match="not password"):
        flavour._load_pyfunc(str(artifact), {"password": "x"})


def test_save_and_what_is_refused(artifact, tmp_path):
    flavour.save_model(artifact, tmp_path / "saved")
    assert contents(tmp_path / "saved" / "artifact") == contents(artifact)
    with pytest.raises(UsageError, match="exists"):
        flavour.save_model(artifact, tmp_path / "saved")
    (artifact / "matrix.npy").write_bytes(b"altered")
    with pytest.raises(ArtifactError, match="truncated or altered"):
        flavour.save_model(artifact, tmp_path / "other")


def test_a_model_of_another_flavour_is_refused(tmp_path):
    class Doubles(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):
            return model_input

    mlflow.pyfunc.save_model(tmp_path / "other", python_model=Doubles(), pip_requirements=[])
    with pytest.raises(ArtifactError, match="holds no artifact of deploykit"):
        flavour.load_model(str(tmp_path / "other"))


def test_without_mlflow_it_says_what_to_install(artifact, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingDependencyError, match="mlflow is needed to log artifacts to MLflow"):
        flavour.save_model(artifact, tmp_path / "saved")
