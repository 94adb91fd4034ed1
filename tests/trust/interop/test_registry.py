"""Against a real registry, Debian's `docker-registry`, and what it does not do: check what it serves."""

import os
import random
import shutil
import signal
import socket
import subprocess
import time

import pytest

from deploykit.contract.errors import ArtifactError, DeviceError
from deploykit_trust.oci.pull import pull
from deploykit_trust.oci.push import push
from deploykit_trust.signing import sign

if shutil.which("docker-registry") is None:
    pytest.skip("apt-get install docker-registry", allow_module_level=True)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A registry on loopback, and the folder that it keeps."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path / "registry"
    folder.mkdir()
    config = tmp_path / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    process = subprocess.Popen(["docker-registry", "serve", config], stderr=subprocess.DEVNULL)
    for _ in range(200):
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    yield f"127.0.0.1:{port}", folder, process
    process.kill()
    process.wait()


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def blob(folder, digest):
    return folder / "docker/registry/v2/blobs/sha256" / digest[7:9] / digest[7:] / "data"


def test_push_and_pull(artifact, server, keys, tmp_path):
    host, _, _ = server
    sign(artifact, keys["private"])
    found = push(artifact, f"{host}/team/net:v1", key=keys["public"])
    assert push(artifact, f"{host}/team/net:v2").sent == ()
    for number, reference in enumerate((f"{host}/team/net:v1", f"{host}/team/net:v2", found.pinned)):
        got = pull(reference, tmp_path / f"got{number}", key=keys["public"]).artifact.path
        assert files(got) == files(artifact)
    with pytest.raises(DeviceError, match="404"):
        pull(f"{host}/team/net:none", tmp_path / "none")


def test_a_large_file_in_several_chunks(toy, server, tmp_path, monkeypatch):
    monkeypatch.setattr("deploykit_trust.oci.push._CHUNK_BYTES", 1 << 20)
    monkeypatch.setattr(toy, "MATRIX", toy.np.tile(toy.MATRIX, (1, 200_000)))
    toy.write_artifact(tmp_path / "large")
    host, _, _ = server
    push(tmp_path / "large", f"{host}/large:v1")
    assert files(pull(f"{host}/large:v1", tmp_path / "got").artifact.path) == files(tmp_path / "large")


def test_flipped_bytes_on_the_registrys_disk_are_refused(artifact, server, keys, tmp_path):
    """The registry serves them as they are, under the old digest."""
    host, folder, _ = server
    sign(artifact, keys["private"])
    found, rng = push(artifact, f"{host}/team/net:v1"), random.Random(18)
    kept = [path for path in (folder / "docker/registry/v2/blobs").rglob("data") if path.read_bytes() != b"{}"]
    assert blob(folder, found.digest) in kept and len(kept) == 8
    for path in kept:
        whole = path.read_bytes()
        for _ in range(5):
            data = bytearray(whole)
            data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
            path.write_bytes(data)
            with pytest.raises((ArtifactError, DeviceError)):
                pull(f"{host}/team/net:v1", tmp_path / "got")
            assert not (tmp_path / "got").exists()
        path.write_bytes(whole[:-1])
        with pytest.raises((ArtifactError, DeviceError)):
            pull(f"{host}/team/net:v1", tmp_path / "got")
        path.write_bytes(whole)
    assert files(pull(f"{host}/team/net:v1", tmp_path / "got").artifact.path) == files(artifact)


def test_a_registry_that_dies_in_the_middle(toy, server, tmp_path, monkeypatch):
    """The pull is refused, what has arrived is kept, and the next one goes on."""
    monkeypatch.setattr("deploykit_trust.oci.pull._TRIES", 1)
    monkeypatch.setattr(toy, "MATRIX", toy.np.tile(toy.MATRIX, (1, 500_000)))
    toy.write_artifact(tmp_path / "large")
    host, _, process = server
    push(tmp_path / "large", f"{host}/large:v1")
    from deploykit_trust.oci import pull as module

    real, seen = module._download, []

    def stopped(line, found, file, done, digest):
        if found.path == "matrix.npy" and not seen:
            seen.append(found)
            file.write(b"")
            os.kill(process.pid, signal.SIGSTOP)
            os.kill(process.pid, signal.SIGKILL)
        return real(line, found, file, done, digest)

    monkeypatch.setattr(module, "_download", stopped)
    with pytest.raises(DeviceError, match="cannot be reached, or the line was cut"):
        pull(f"{host}/large:v1", tmp_path / "got")
    assert not (tmp_path / "got").exists()
