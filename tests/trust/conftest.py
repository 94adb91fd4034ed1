"""Artifacts of the toy toolchain of `tests/core`, key pairs, and a state folder that no other test shares."""

import importlib.util
import sys
from pathlib import Path

import pytest

_CORE = Path(__file__).parents[1] / "core" / "conftest.py"
_spec = importlib.util.spec_from_file_location("deploykit_core_fixtures", _CORE)
_core = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_core)
install, toy_path, toy = _core.install, _core.toy_path, _core.toy


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """Where what was made here is remembered, and what is downloaded is kept."""
    monkeypatch.setenv("DEPLOYKIT_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "state"


@pytest.fixture
def artifact(toy, tmp_path):
    """A folder that is a whole artifact, with a profile and a log beside its manifest."""
    folder = tmp_path / "net"
    toy.write_artifact(folder, profile=toy.make_profile())
    (folder / "convert.log").write_text("converted\n")
    return folder


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """Files of a private key, its public one, and another public one."""
    folder = tmp_path_factory.mktemp("keys")
    return {**_write_keys(folder, "own"), "other": _write_keys(folder, "other")["public"]}


@pytest.fixture(scope="session")
def write_keys():
    """`write_keys(folder, name, curve)` writes a pair of keys and returns the paths of both."""
    return _write_keys


def _write_keys(folder, name, curve="SECP256R1"):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(getattr(ec, curve)())
    paths = {"private": folder / f"{name}.pem", "public": folder / f"{name}.pub"}
    paths["private"].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    paths["public"].write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return paths


_registry = importlib.util.spec_from_file_location("deploykit_test_registry", Path(__file__).with_name("registry.py"))
registry_module = importlib.util.module_from_spec(_registry)
sys.modules["deploykit_test_registry"] = registry_module
_registry.loader.exec_module(registry_module)


@pytest.fixture
def registry(monkeypatch, tmp_path):
    """A registry on loopback that does what it should, until told otherwise; nobody is logged in."""
    for name in ("USER", "PASSWORD", "HOST"):
        monkeypatch.delenv(f"DEPLOYKIT_REGISTRY_{name}", raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setattr("deploykit_trust.oci.pull._PAUSE_S", 0.0)
    monkeypatch.setattr("deploykit_trust.oci.push._PAUSE_S", 0.0)
    started = registry_module.Registry().start()
    yield started
    started.stop()
