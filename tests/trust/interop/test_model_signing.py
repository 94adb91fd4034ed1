"""The stock tool of the model-signing format checks what we sign, and we check what it signs (`tox -e interop`)."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import deploykit
from deploykit.contract.errors import ArtifactError
from deploykit_trust.signing import sign

pytest.importorskip("model_signing", reason="`tox -e interop` installs model-signing")
STOCK = shutil.which("model_signing", path=str(Path(sys.executable).parent)) or "model_signing"


def stock(*words):
    return subprocess.run([STOCK, *map(str, words)], capture_output=True, text=True, check=False, timeout=120)


def stock_checks(artifact, key):
    return stock("verify", "key", artifact, "--public_key", key, "--signature", artifact / "model.sig")


@pytest.mark.parametrize("curve", ["SECP256R1", "SECP384R1", "SECP521R1"])
def test_the_stock_tool_checks_ours(artifact, write_keys, tmp_path, curve):
    own = write_keys(tmp_path, "k", curve)
    sign(artifact, own["private"], source=".")
    done = stock_checks(artifact, own["public"])
    assert done.returncode == 0, done.stderr
    (artifact / "profile.json").unlink()  # a record
    assert stock_checks(artifact, own["public"]).returncode == 0
    (artifact / "matrix.npy").write_bytes(b"altered")
    assert stock_checks(artifact, own["public"]).returncode != 0


@pytest.mark.parametrize("curve", ["SECP256R1", "SECP384R1", "SECP521R1"])
@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("ignored", [("profile.json", "convert.log"), ()])
def test_we_check_the_stock_tools(artifact, write_keys, tmp_path, curve, ours_first, ignored):
    own = write_keys(tmp_path, "k", curve)
    if ours_first:
        sign(artifact, own["private"])
        (artifact / "model.sig").unlink()
    left_out = [word for name in ignored for word in ("--ignore-paths", artifact / name)]
    place = ("--signature", artifact / "model.sig")
    done = stock("sign", "key", artifact, "--private_key", own["private"], *place, *left_out)
    assert done.returncode == 0, done.stderr
    assert deploykit.load(artifact, key=own["public"]).vouched
    if not ignored:  # a record that was signed is a file like others
        (artifact / "profile.json").write_bytes(b"{}")
        with pytest.raises(ArtifactError, match=r"profile\.json of net is not what was signed"):
            deploykit.load(artifact, key=own["public"])
    (artifact / "golden.safetensors").write_bytes(b"altered")
    with pytest.raises(ArtifactError):
        deploykit.load(artifact, key=own["public"])


def test_what_the_stock_tool_was_told_to_leave_out_is_refused(artifact, keys):
    place = ("--signature", artifact / "model.sig")
    hidden = ("--ignore-paths", artifact / "matrix.npy")
    assert stock("sign", "key", artifact, "--private_key", keys["private"], *place, *hidden).returncode == 0
    assert stock_checks(artifact, keys["public"]).returncode == 0
    with pytest.raises(ArtifactError, match=r"the signature leaves out matrix\.npy, which may be read"):
        deploykit.load(artifact, key=keys["public"])
