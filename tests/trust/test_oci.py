"""Artifacts through registries that behave, that break, and that lie."""

import base64
import json
import random
import socket
import stat
import threading

import pytest

from deploykit.contract.errors import ArtifactError, DeviceError, UsageError
from deploykit_trust.oci import layout
from deploykit_trust.oci.credentials import credentials_for
from deploykit_trust.oci.pull import pull
from deploykit_trust.oci.push import push
from deploykit_trust.oci.reference import Reference
from deploykit_trust.signing import sign

FILES = {"manifest.json", "matrix.npy", "golden.safetensors", "profile.json", "convert.log"}


@pytest.fixture
def ref(registry):
    return f"{registry.host}/team/net:v1"


@pytest.fixture
def pushed(artifact, ref, keys):
    sign(artifact, keys["private"])
    return push(artifact, ref)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(ref, folder, match, error=ArtifactError, **given):
    with pytest.raises(error, match=match):
        pull(ref, folder, **given)
    assert not folder.exists()
    assert [path.name for path in folder.parent.iterdir() if ".staging" in path.name] == []


def test_what_is_pulled_is_what_was_pushed(artifact, pushed, ref, keys, tmp_path):
    found = pull(ref, tmp_path / "got", key=keys["public"])
    assert contents(tmp_path / "got") == contents(artifact)
    assert (found.pinned, found.digest) == (pushed.pinned, pushed.digest)
    assert set(pushed.sent) == FILES | {"model.sig", "lineage.sigstore.json"}
    assert found.artifact.vouched and stat.S_IMODE((tmp_path / "got" / "matrix.npy").stat().st_mode) == 0o644
    assert contents(pull(pushed.pinned, tmp_path / "pinned").artifact.path) == contents(artifact)


def test_the_same_again_sends_nothing_and_replaces_the_folder(artifact, pushed, ref, registry, tmp_path):
    again = push(artifact, ref)
    assert (again.sent, again.bytes_sent, again.digest) == ((), 0, pushed.digest)
    for _ in range(2):
        pull(ref, tmp_path / "got")
    assert not list((tmp_path / "cache" / "pull").iterdir())


def test_the_default_folder_is_the_last_part_of_the_name(pushed, ref, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net").rename(tmp_path / "source")
    assert pull(ref).artifact.path == tmp_path / "net"


def test_what_is_somebody_elses_is_not_replaced(pushed, ref, tmp_path):
    (tmp_path / "got").mkdir()
    (tmp_path / "got" / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="is not an artifact; it is left alone"):
        pull(ref, tmp_path / "got")
    assert (tmp_path / "got" / "notes.txt").read_text() == "mine"


def test_every_altered_byte_in_the_registry_is_refused(pushed, ref, registry, tmp_path, keys):
    """Blobs and manifest; the tag's digest is what the registry says it stored. The benchmark tries more."""
    rng, tried = random.Random(18), 0
    whole = dict(registry.blobs)
    image = registry.manifests["v1"]
    kept = {one["digest"]: one["annotations"][layout.TITLE] for one in registry.image()["layers"]}
    digests = sorted(kept)
    registry.faults.append(lambda h: h.path.endswith("/manifests/v1") and _stored(h, registry, pushed.digest))
    for number in range(96):
        if number % 8 == 0:
            data = bytearray(image)
            data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
            registry.manifests["v1"] = bytes(data)
        else:
            digest = digests[number % len(digests)]
            data = bytearray(whole[digest])
            data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
            registry.blobs[digest] = bytes(data)
        with pytest.raises(ArtifactError):
            pull(ref, tmp_path / "got", key=keys["public"] if number % 2 else None)
        assert not (tmp_path / "got").exists()
        registry.blobs, registry.manifests["v1"] = dict(whole), image
        tried += 1
    assert tried == 96
    pull(ref, tmp_path / "got", key=keys["public"])


def _stored(handler, registry, digest):
    handler.send(200, registry.manifests["v1"], Docker_Content_Digest=digest)
    return True


def test_a_moved_tag_is_found_out_by_digest_and_by_key(artifact, pushed, ref, registry, toy, tmp_path, keys):
    toy.write_artifact(tmp_path / "other", tool_versions={"toy": "2.0"})
    push(tmp_path / "other", ref)
    assert pull(ref, tmp_path / "got").artifact.manifest.tool_versions == {"toy": "2.0"}
    refused(ref, tmp_path / "signed", "is not signed", key=keys["public"])
    refused(ref + "@" + pushed.digest.replace("sha256:", "sha256:0")[:71], tmp_path / "x", "404", error=DeviceError)
    registry.manifests[pushed.digest] = registry.manifests["v1"]
    refused(pushed.pinned, tmp_path / "pinned", "where sha256:.* was to be")


def test_a_signature_is_checked_before_large_files_are_fetched(artifact, registry, ref, keys, tmp_path):
    sign(artifact, keys["private"])
    push(artifact, ref)
    registry.requests.clear()
    refused(ref, tmp_path / "got", "signature by another key", key=keys["other"])
    assert not [asked for asked in registry.requests if registry.layer("matrix.npy")["digest"] in asked]


TITLES = [
    "../outside",
    "/etc/cron.d/x",
    "a\\b",
    "C:x",
    "a/../b",
    "./manifest.json",
    "",
    ".",
    "a\nb",
    "sub//x",
    "~/x/../y",
]


@pytest.mark.parametrize("title", TITLES, ids=repr)
def test_names_that_leave_the_folder_are_refused(pushed, ref, registry, tmp_path, title):
    image = registry.image()
    image["layers"][0]["annotations"][layout.TITLE] = title
    registry.put_image(image)
    refused(ref, tmp_path / "got", "unsafe path")


@pytest.mark.parametrize("title", ["run.sh", ".gitignore", "model.engine", "timing.cache", "__pycache__/x.pyc"])
def test_files_that_the_artifact_does_not_list_are_refused(pushed, ref, registry, tmp_path, title):
    image = registry.image()
    layer = json.loads(json.dumps(image["layers"][0]))
    layer["annotations"][layout.TITLE] = title
    image["layers"].append(layer)
    registry.put_image(image)
    refused(ref, tmp_path / "got", "the artifact's manifest does not list it")


IMAGES = {
    "not JSON": lambda image: b"<html>",
    "a list": lambda image: [],
    "deep": lambda image: b'{"layers":' + b"[" * 5000,
    "an index": lambda image: {**image, "mediaType": "application/vnd.oci.image.index.v1+json"},
    "a container": lambda image: {**image, "artifactType": "application/vnd.oci.image.config.v1+json"},
    "no layers": lambda image: {**image, "layers": []},
    "twice": lambda image: {**image, "layers": [*image["layers"], image["layers"][0]]},
    "md5": lambda image: changed(image, digest="md5:" + "0" * 32),
    "a path as digest": lambda image: changed(image, digest="sha256:../../token"),
    "negative": lambda image: changed(image, size=-1),
    "another size": lambda image: changed(image, size=7),
    "other bytes": lambda image: changed(image, digest="sha256:" + "0" * 64),
    "huge": lambda image: changed(image, size=1 << 60),
    "a script": lambda image: changed(image, mediaType="application/x-sh"),
    "compressed": lambda image: changed(image, mediaType="application/vnd.oci.image.layer.v1.tar+gzip"),
}


def changed(image, **fields):
    place = next(i for i, one in enumerate(image["layers"]) if one["annotations"][layout.TITLE] == "matrix.npy")
    layers = [{**one, **fields} if i == place else one for i, one in enumerate(image["layers"])]
    return {**image, "layers": layers}


@pytest.mark.parametrize("change", IMAGES.values(), ids=IMAGES.keys())
def test_other_manifests_are_refused(pushed, ref, registry, tmp_path, change):
    registry.put_image(change(registry.image()))
    refused(ref, tmp_path / "got", "team/net:v1|unsafe path")


def test_many_layers_are_read_in_a_time_that_grows_with_their_number(pushed, registry):
    """Of 20,000, as many as fit into a manifest; each was compared with each, for a minute."""
    image = registry.image()
    layer = image["layers"][0]
    more = [{**layer, "annotations": {layout.TITLE: f"file{number}"}} for number in range(20_000)]
    assert len(layout.blobs_in(json.dumps({**image, "layers": [*image["layers"], *more]}).encode(), "x")) > 20_000


def test_a_manifest_without_a_digest_is_taken_by_digest_only(pushed, ref, registry, tmp_path):
    registry.hide_digest = True
    refused(ref, tmp_path / "got", "does not say the digest of what 'v1' is\n  -> pull by digest")
    assert pull(pushed.pinned, tmp_path / "got").digest == pushed.digest


def test_bodies_without_end_are_cut(pushed, ref, registry, tmp_path):
    """Neither memory nor disk: what is longer than it should be is not read."""

    def endless(handler):
        if "/blobs/" not in handler.path:
            return False
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"\0" * 65536)
        except OSError:
            handler.close_connection = True
        return True

    registry.faults.append(endless)
    refused(ref, tmp_path / "got", "is longer than .* bytes")
    assert sum(path.stat().st_size for path in (tmp_path / "cache" / "pull").iterdir()) == 0
    registry.faults[:] = [lambda h: "/manifests/" in h.path and (h.send(200, b" " * (5 << 20)) or True)]
    refused(ref, tmp_path / "got", "has more than 4194304 bytes, and is not read")


@pytest.mark.parametrize("part", ["blob", "manifest", "headers", "error"])
def test_who_answers_byte_by_byte_is_left(pushed, ref, registry, tmp_path, monkeypatch, part):
    """Each byte comes in time, and the answer never ends."""
    monkeypatch.setattr("deploykit_trust.oci.transport._SLOW_S", 0.2)

    def dripping(handler):
        if ("/blobs/" in handler.path) != (part == "blob"):
            return False
        head = b"HTTP/1.1 %d x\r\n" % (403 if part == "error" else 200)
        if part != "headers":
            head += b"Content-Length: 90\r\nDocker-Content-Digest: sha256:" + b"0" * 64 + b"\r\n\r\n"
        try:
            handler.wfile.write(head)
            while not stop.wait(0.01):
                handler.wfile.write(b"x")
        except OSError:
            pass
        handler.close_connection = True
        return True

    stop = threading.Event()
    registry.faults.append(dripping)
    try:
        match = "answers 403" if part == "error" else "fewer than 1024 bytes a second"
        refused(ref, tmp_path / "got", match, DeviceError)
    finally:
        stop.set()


def test_a_pull_that_was_cut_goes_on_where_it_was(artifact, registry, ref, tmp_path, monkeypatch):
    push(artifact, ref)
    monkeypatch.setattr("deploykit_trust.oci.pull._TRIES", 1)
    digest = registry.layer("golden.safetensors")["digest"]
    whole = registry.blobs[digest]

    def cut(handler):
        if digest not in handler.path or handler.headers.get("Range"):
            return False
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(whole)))
        handler.end_headers()
        handler.wfile.write(whole[:100])
        handler.wfile.flush()
        handler.connection.shutdown(socket.SHUT_RDWR)
        handler.close_connection = True
        return True

    registry.faults.append(cut)
    refused(ref, tmp_path / "got", r"was cut after 100 of \d+ bytes\n  -> pull again: it goes on", error=DeviceError)
    registry.headers.clear()
    pull(ref, tmp_path / "got")
    assert [one["Range"] for one in registry.headers if "Range" in one] == ["bytes=100-"]
    assert contents(tmp_path / "got") == contents(artifact)


def test_a_registry_that_knows_no_ranges_begins_anew(artifact, registry, ref, tmp_path):
    push(artifact, ref)
    layer = registry.layer("matrix.npy")
    part = tmp_path / "cache" / "pull" / (layer["digest"].removeprefix("sha256:") + ".0")
    part.parent.mkdir(parents=True)
    part.write_bytes(registry.blobs[layer["digest"]][:50])
    registry.faults.append(lambda h: bool(h.headers.__delitem__("Range")) if "Range" in h.headers else False)
    pull(ref, tmp_path / "got")
    assert contents(tmp_path / "got") == contents(artifact)


@pytest.mark.parametrize("left", [b"wrong" * 10, b"\0" * 4096, b""], ids=["wrong", "too long", "empty"])
def test_what_an_earlier_pull_left_is_not_believed(artifact, registry, ref, tmp_path, left):
    push(artifact, ref)
    part = tmp_path / "cache" / "pull" / (registry.layer("matrix.npy")["digest"].removeprefix("sha256:") + ".0")
    part.parent.mkdir(parents=True)
    part.write_bytes(left)
    pull(ref, tmp_path / "got")
    assert contents(tmp_path / "got") == contents(artifact)


def test_a_part_that_is_a_link_is_not_followed(artifact, registry, ref, tmp_path):
    push(artifact, ref)
    (tmp_path / "precious").write_text("mine")
    part = tmp_path / "cache" / "pull" / (registry.layer("matrix.npy")["digest"].removeprefix("sha256:") + ".0")
    part.parent.mkdir(parents=True)
    part.symlink_to(tmp_path / "precious")
    refused(ref, tmp_path / "got", "cannot write")
    assert (tmp_path / "precious").read_text() == "mine"


def test_an_answer_of_a_part_that_was_not_asked_for_is_refused(artifact, registry, ref, tmp_path):
    push(artifact, ref)
    registry.faults.append(
        lambda h: "/blobs/" in h.path and (h.send(206, b"x" * 10, Content_Range="bytes 5-14/15") or True)
    )
    refused(ref, tmp_path / "got", "sends a part of .* that was not asked for")


@pytest.mark.parametrize(
    ("where", "match"),
    [
        ("file:///etc/passwd", "without TLS; it is not followed"),
        ("ftp://example.org/x", "without TLS; it is not followed"),
        ("http://registry.example.org/x", "without TLS; it is not followed"),
        ("http://169.254.169.254/latest/meta-data", "without TLS; it is not followed"),
    ],
)
def test_redirects_to_where_nothing_is_asked(pushed, ref, registry, tmp_path, where, match):
    registry.faults.append(lambda h: "/blobs/" in h.path and (h.send(307, Location=where) or True))
    refused(ref, tmp_path / "got", match)


def test_redirects_without_end(pushed, ref, registry, tmp_path):
    registry.faults.append(lambda h: "/blobs/" in h.path and (h.send(307, Location=h.path) or True))
    refused(ref, tmp_path / "got", "redirects more than 5 times")


def test_a_redirect_elsewhere_is_followed_without_the_login(pushed, artifact, ref, registry, tmp_path, monkeypatch):
    import deploykit_test_registry

    store = deploykit_test_registry.Registry(blobs=registry.blobs).start()
    monkeypatch.setenv("DEPLOYKIT_REGISTRY_USER", "me")
    monkeypatch.setenv("DEPLOYKIT_REGISTRY_PASSWORD", "s3cret")
    registry.login = "Basic " + base64.b64encode(b"me:s3cret").decode()
    elsewhere = f"http://{store.host.replace('127.0.0.1', 'localhost')}"
    registry.faults.append(lambda h: "/blobs/" in h.path and (h.send(307, Location=elsewhere + h.path) or True))
    pull(ref, tmp_path / "got")
    store.stop()
    assert contents(tmp_path / "got") == contents(artifact)
    assert store.requests and not any("Authorization" in one for one in store.headers)


def test_logins(artifact, ref, registry, tmp_path, monkeypatch):
    registry.login = "Basic " + base64.b64encode(b"me:s3cret").decode()
    with pytest.raises(DeviceError, match=r"asks for a login\n  -> log in: docker login"):
        push(artifact, ref)
    monkeypatch.setenv("DEPLOYKIT_REGISTRY_USER", "me")
    with pytest.raises(UsageError, match="go together, and one is not set"):
        push(artifact, ref)
    monkeypatch.setenv("DEPLOYKIT_REGISTRY_PASSWORD", "wr0ng")
    with pytest.raises(DeviceError, match="answers 401") as wrong:
        push(artifact, ref)
    assert "wr0ng" not in str(wrong.value) and "bWU6" not in str(wrong.value)
    monkeypatch.setenv("DEPLOYKIT_REGISTRY_PASSWORD", "s3cret")
    push(artifact, ref)


def test_tokens_are_fetched_with_the_login_and_again_when_they_expire(artifact, ref, registry, tmp_path, monkeypatch):
    (tmp_path / "docker").mkdir()
    login = base64.b64encode(b"me:s3cret").decode()
    (tmp_path / "docker" / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": login}}}))
    registry.login, registry.token = f"Basic {login}", "first"
    push(artifact, ref)
    asked = []

    def expire(handler):
        if "/blobs/" in handler.path and not asked:
            asked.append(handler.path)
            registry.token = "second"
        return False

    registry.faults.append(expire)
    pull(ref, tmp_path / "got")
    assert asked and sum("/token" in one for one in registry.requests) == 3
    scopes = [one for one in registry.requests if "/token" in one]
    assert "scope=repository%3Ateam%2Fnet%3Apull%2Cpush" in scopes[0] and "%3Apull" in scopes[1]


@pytest.mark.parametrize(
    "challenge",
    [
        'Bearer realm="http://evil.example.org/token",service="x"',
        'Bearer realm="file:///etc/passwd"',
        "Bearer",
        "Negotiate abc",
        "",
    ],
)
def test_logins_elsewhere_without_tls_are_not_given(artifact, ref, registry, monkeypatch, challenge):
    monkeypatch.setenv("DEPLOYKIT_REGISTRY_USER", "me")
    monkeypatch.setenv("DEPLOYKIT_REGISTRY_PASSWORD", "s3cret")
    registry.faults.append(lambda h: h.send(401, WWW_Authenticate=challenge) or True)
    with pytest.raises((ArtifactError, DeviceError)) as error:
        push(artifact, ref)
    assert "s3cret" not in str(error.value)


DEEP = b"[" * 200_000
WORDS = {
    "realm without a host": lambda host: {"status": 401, "WWW_Authenticate": 'Bearer realm="https://[::1/token"'},
    "realm without a port": lambda host: {"status": 401, "WWW_Authenticate": 'Bearer realm="http://127.0.0.1:x/t"'},
    "redirect without a host": lambda host: {"status": 307, "Location": "http://[::1/x"},
    "redirect without a port": lambda host: {"status": 307, "Location": "http://127.0.0.1:99999/x"},
    "a deep error": lambda host: {"status": 500, "body": DEEP},
    "a deep token": lambda host: {"status": 401, "WWW_Authenticate": f'Bearer realm="http://{host}/token"'},
}


@pytest.mark.parametrize("words", WORDS)
def test_what_a_registry_says_is_never_a_defect_of_ours(registry, ref, tmp_path, words):
    answer = WORDS[words](registry.host)

    def fault(handler):
        if handler.path.startswith("/token"):
            handler.send(200, DEEP)
        else:
            handler.send(**answer)
        return True

    registry.faults.append(fault)
    refused(ref, tmp_path / "got", r"127\.0\.0\.1|an address that is none", error=(ArtifactError, DeviceError))


def test_a_login_that_is_said_back_is_not_shown(registry, ref, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_REGISTRY_USER", "me")
    monkeypatch.setenv("DEPLOYKIT_REGISTRY_PASSWORD", "s3cret")

    def fault(handler):
        header = handler.headers.get("Authorization")
        if not header:
            handler.send(401, WWW_Authenticate='Basic realm="own"')
            return True
        said = base64.b64decode(header.split()[1]).decode() if "plain" in handler.path else header
        handler.send(403, json.dumps({"errors": [{"code": "DENIED", "message": said}]}).encode())
        return True

    registry.faults.append(fault)
    for name in (ref, ref.replace("team", "plain")):
        with pytest.raises(DeviceError, match="answers 403") as error:
            pull(name)
        assert "s3cret" not in str(error.value) and base64.b64encode(b"me:s3cret").decode() not in str(error.value)


def test_a_login_is_for_the_registry_that_is_named_beside_it(registry, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_REGISTRY_USER", "me")
    monkeypatch.setenv("DEPLOYKIT_REGISTRY_PASSWORD", "s3cret")
    assert credentials_for(registry.host) and credentials_for("elsewhere")
    monkeypatch.setenv("DEPLOYKIT_REGISTRY_HOST", registry.host)
    assert credentials_for(registry.host).user == "me" and credentials_for("elsewhere") is None


def test_what_docker_knows(tmp_path, monkeypatch):
    folder = tmp_path / "docker"
    folder.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    monkeypatch.delenv("DEPLOYKIT_REGISTRY_USER", raising=False)
    helper = tmp_path / "bin" / "docker-credential-own"
    helper.parent.mkdir()
    helper.write_text(
        '#!/bin/sh\nread host\n[ "$host" = a.example.org ] || exit 1\n'
        'echo \'{"Username": "helped", "Secret": "s3cret"}\'\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{helper.parent}:/usr/bin:/bin")

    def config(**found):
        (folder / "config.json").write_text(json.dumps(found))

    assert credentials_for("a.example.org") is None
    config(credHelpers={"a.example.org": "own"}, auths={"b.example.org": {}}, credsStore="own")
    assert credentials_for("a.example.org").user == "helped" and "s3cret" not in repr(credentials_for("a.example.org"))
    assert credentials_for("b.example.org") is None and credentials_for("c.example.org") is None
    config(credHelpers={"a.example.org": "absent"})
    with pytest.raises(UsageError, match="names the helper 'absent', which is not installed"):
        credentials_for("a.example.org")
    config(auths={"a.example.org": {"auth": "no base64"}})
    with pytest.raises(UsageError, match="holds a login that cannot be read") as error:
        credentials_for("a.example.org")
    assert "no base64" not in str(error.value)
    (folder / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"config.json"):
        credentials_for("a.example.org")


def test_an_upload_that_was_cut_goes_on_where_the_registry_is(artifact, ref, registry, monkeypatch):
    monkeypatch.setattr("deploykit_trust.oci.push._CHUNK_BYTES", 64)
    failed = []

    def cut(handler):
        if handler.command == "PATCH" and len(failed) < 2 and int(handler.headers["Content-Range"].split("-")[0]) == 64:
            failed.append(handler.path)
            name = handler.path.rpartition("/")[2].partition("?")[0]
            registry.uploads[name] += handler.body[:10]
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
            return True
        return False

    registry.faults.append(cut)
    push(artifact, ref)
    assert len(failed) == 2
    assert registry.blobs[registry.layer("matrix.npy")["digest"]] == (artifact / "matrix.npy").read_bytes()


def test_a_push_that_was_killed_leaves_no_tag_and_goes_on(artifact, ref, registry):
    registry.faults.append(lambda h: h.command == "PUT" and "/manifests/" in h.path and (h.send(403) or True))
    with pytest.raises(DeviceError, match="answers 403 to PUT"):
        push(artifact, ref)
    assert "v1" not in registry.manifests
    registry.faults.clear()
    assert push(artifact, ref).sent == ()


def test_a_registry_that_keeps_other_bytes_is_found_out(artifact, ref, registry, monkeypatch):
    def keep_other(handler):
        if handler.command == "PUT" and "/manifests/" in handler.path:
            handler.send(201)
            registry.put_image(handler.body.replace(b"toy", b"tox"))
            return True
        return False

    registry.faults.append(keep_other)
    with pytest.raises(ArtifactError, match="holds another manifest than was sent"):
        push(artifact, ref)
    registry.faults[:] = [lambda h: h.command == "PUT" and (h.send(201, Docker_Content_Digest="sha256:0") or True)]
    registry.blobs.clear()
    with pytest.raises(ArtifactError, match="keeps 'sha256:0' where"):
        push(artifact, ref)


def test_uploads_elsewhere_are_not_followed(artifact, ref, registry):
    elsewhere = "http://evil.example.org/upload"
    registry.faults.append(lambda h: h.command == "POST" and (h.send(202, Location=elsewhere) or True))
    with pytest.raises(ArtifactError, match=r"sends an upload to http://evil.example.org/upload; it is not followed"):
        push(artifact, ref)


def test_only_what_is_signed_is_pushed_where_a_key_is_given(artifact, ref, registry, keys):
    with pytest.raises(ArtifactError, match="is not signed"):
        push(artifact, ref, key=keys["public"])
    assert not registry.requests
    (artifact / "matrix.npy").write_bytes(b"altered")
    with pytest.raises(ArtifactError, match="truncated or altered"):
        push(artifact, ref)
    assert not registry.requests


def test_what_is_not_there_and_who_does_not_answer(registry, tmp_path, monkeypatch):
    refused(f"{registry.host}/team/none:v1", tmp_path / "got", "404.*MANIFEST_UNKNOWN manifest unknown", DeviceError)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    refused(f"127.0.0.1:{port}/team/net:v1", tmp_path / "got", "cannot be reached", DeviceError)


def test_without_tls_only_on_this_machine_or_on_request(registry, tmp_path, monkeypatch):
    """The name of another machine is asked over TLS, and a registry that has none is an error and no fall-back."""
    real = socket.getaddrinfo
    port = int(registry.host.rpartition(":")[2])
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: real("127.0.0.1", *rest, **more))
    asked = f"registry.example.org:{port}/team/net:v1"
    refused(asked, tmp_path / "got", "TLS", DeviceError)
    assert not registry.requests
    refused(asked, tmp_path / "got", "404", DeviceError, plain_http=True)
    assert registry.requests == ["GET /v2/team/net/manifests/v1"]


@pytest.fixture
def tls(registry, tmp_path, monkeypatch):
    """The registry behind TLS, by the name `registry.example.org`, with a certificate of an authority of its own."""
    import datetime
    import ssl

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "registry.example.org")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("registry.example.org")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, private = tmp_path / "tls.pem", tmp_path / "tls.key"
    certificate.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, private)
    registry.server.socket = context.wrap_socket(registry.server.socket, server_side=True)
    real, port = socket.getaddrinfo, registry.host.rpartition(":")[2]
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: real("127.0.0.1", *rest, **more))
    return f"registry.example.org:{port}", certificate


def test_over_tls_with_an_authority_of_ones_own(artifact, tls, tmp_path, monkeypatch, registry):
    host, certificate = tls
    with pytest.raises(DeviceError, match=r"(?s)TLS: .*SSL_CERT_FILE"):
        push(artifact, f"{host}/team/net:v1")
    assert not registry.requests
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    push(artifact, f"{host}/team/net:v1")  # its uploads go on at `http:`, as behind a proxy
    assert contents(pull(f"{host}/team/net:v1", tmp_path / "got").artifact.path) == contents(artifact)
    with pytest.raises(DeviceError, match="TLS"):
        pull(f"other.example.org:{host.rpartition(':')[2]}/team/net:v1", tmp_path / "other")
    registry.faults.append(
        lambda h: "/blobs/" in h.path and (h.send(307, Location=f"http://{registry.host}{h.path}") or True)
    )
    refused(f"{host}/team/net:v1", tmp_path / "plain", "without TLS; it is not followed")


@pytest.mark.parametrize(
    "text",
    ["", "net", "net:v1", "team/net:v1", "host.example.org", "host.example.org/", "host.example.org/Net", "a.b/c:",
     "https://a.b/c:v1", "a.b/c@sha256:12", "a.b/c:v1@md5:" + "0" * 32, "a.b/../c", "a.b/c/../d:v1", "a.b/c d",
     "me:pw@a.b/c", "a.b:port/c", "-a.b/c", "a.b/" + "x" * 300, "a.b/c\n", "a.b/c?x=1", "a.b/c#d"],
)  # fmt: skip
def test_what_is_no_reference(text):
    with pytest.raises(UsageError, match=r"registry.example.org/team/model:v1"):
        Reference.parse(text)


def test_references():
    found = Reference.parse("localhost:5000/a/b-c.d__e:v1.2")
    assert (found.host, found.name, found.tag, found.is_loopback) == ("localhost:5000", "a/b-c.d__e", "v1.2", True)
    assert Reference.parse("[::1]:5000/a").is_loopback and Reference.parse("127.9.9.9/a").is_loopback
    assert not Reference.parse("127.0.0.1.example.org/a").is_loopback
    assert not Reference.parse("localhost.example.org/a").is_loopback
    assert Reference.parse("a.b/c").tag == "latest"
    both = f"a.b/c:v1@sha256:{'0' * 64}"
    assert Reference.parse(both).target == f"sha256:{'0' * 64}" and str(Reference.parse(both)) == both


def test_a_pull_by_two_at_once(artifact, registry, ref, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    push(artifact, ref)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: pull(ref, tmp_path / f"got{number}"), range(4)))
    assert all(contents(one.artifact.path) == contents(artifact) for one in found)


def test_an_artifact_without_records_and_one_that_changes_meanwhile(toy, registry, ref, tmp_path, monkeypatch):
    toy.write_artifact(tmp_path / "bare")
    assert set(push(tmp_path / "bare", ref).sent) == FILES - {"profile.json", "convert.log"}
    from deploykit_trust.oci import push as module

    real = module._send_chunk

    def altering(line, upload, data, start):
        (tmp_path / "bare" / "matrix.npy").write_bytes(b"altered")
        return real(line, upload, data, start)

    registry.blobs.clear()
    monkeypatch.setattr(module, "_send_chunk", altering)
    with pytest.raises(ArtifactError, match=r"altered|cut"):
        push(tmp_path / "bare", ref)


def test_a_record_that_no_pull_would_take_is_not_pushed(artifact, registry, ref, monkeypatch):
    monkeypatch.setattr(layout, "RECORDS", {**layout.RECORDS, "convert.log": 3})
    with pytest.raises(ArtifactError, match=r"convert\.log has more than 3 bytes, which no pull takes"):
        push(artifact, ref)


def test_a_machine_without_the_toolchain_pulls_all_the_same(artifact, registry, ref, tmp_path, monkeypatch):
    from deploykit.plugin import registry as plugins

    push(artifact, ref)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: ())
    monkeypatch.setattr("importlib.metadata.distributions", lambda **_: ())
    plugins._plugins.cache_clear()
    found = pull(ref, tmp_path / "got").artifact
    assert found.manifest.toolchain == "toy"
    with pytest.raises(UsageError):
        found.open()
    monkeypatch.undo()
    plugins._plugins.cache_clear()
