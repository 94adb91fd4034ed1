"""Signed artifacts: what is signed loads, and nothing else does."""

import base64
import json
import os
import random
import shutil
import subprocess

import pytest

import deploykit
from deploykit.contract.errors import ArtifactError, UsageError
from deploykit_trust import envelope
from deploykit_trust.keys import read_private_key, read_public_key
from deploykit_trust.lineage import read_lineage
from deploykit_trust.signing import sign
from deploykit_trust.statement import root_digest, signed_files, statement_of


@pytest.fixture
def signed(artifact, keys):
    sign(artifact, keys["private"])
    return artifact


def refused(folder, key, match):
    with pytest.raises(ArtifactError, match=match):
        deploykit.load(folder, key=key)


def resigned(folder, keys, change):
    """The artifact with another statement, signed by the right key: what a careless or hostile signer writes."""
    path = folder / "model.sig"
    statement = json.loads(envelope.opened(path.read_bytes(), read_public_key(keys["public"]), what="model.sig"))
    change(statement)
    path.write_bytes(envelope.seal(statement, read_private_key(keys["private"])))


def test_what_is_signed_loads_and_says_where_it_comes_from(signed, keys):
    loaded = deploykit.load(signed, key=keys["public"])
    lineage = read_lineage(loaded, read_public_key(keys["public"]))
    assert loaded.vouched
    assert (lineage.artifact, lineage.model, lineage.recipe) == (loaded.fingerprint, "0" * 64, "1" * 64)
    assert (lineage.calibration, lineage.parent, lineage.commit) == ("2" * 64, "", "")
    assert lineage.tools == {"toy": "1.0"}


@pytest.mark.parametrize("curve", ["SECP256R1", "SECP384R1", "SECP521R1"])
def test_every_curve_of_the_format(artifact, tmp_path, curve, write_keys):
    own = write_keys(tmp_path, "k", curve)
    sign(artifact, own["private"])
    assert deploykit.load(artifact, key=own["public"]).vouched


def test_a_signature_may_be_replaced_and_the_records_may_change(signed, keys, toy):
    sign(signed, keys["private"])
    (signed / "convert.log").unlink()
    deploykit.load(signed).save_profile(toy.make_profile(runs=7))
    assert deploykit.load(signed, key=keys["public"]).profile.runs == 7


def test_without_a_signature_a_key_is_a_refusal(artifact, keys):
    refused(artifact, keys["public"], r"net is not signed: it has no model.sig\n  -> ask its maker")
    assert not deploykit.load(artifact).vouched


def test_another_key_is_a_refusal(signed, keys):
    refused(signed, keys["other"], "model.sig is a signature by another key than other.pub")


def test_a_key_with_the_right_name_and_another_content_is_a_refusal(signed, keys):
    data = json.loads((signed / "model.sig").read_text())
    data["verificationMaterial"]["publicKey"]["hint"] = read_public_key(keys["other"]).hint
    (signed / "model.sig").write_text(json.dumps(data, separators=(",", ":")))
    refused(signed, keys["other"], "the signature is not of other.pub, or what was signed was altered")


def test_a_signature_of_another_artifact_is_a_refusal(signed, keys, toy, tmp_path):
    toy.write_artifact(tmp_path / "second", tool_versions={"toy": "2.0"})
    for name in ("model.sig", "lineage.sigstore.json"):
        shutil.copy(signed / name, tmp_path / "second" / name)
    refused(tmp_path / "second", keys["public"], r"manifest.json of second is not what was signed")


def test_a_lineage_of_another_artifact_is_a_refusal(signed, keys, toy, tmp_path):
    toy.write_artifact(tmp_path / "second", tool_versions={"toy": "2.0"})
    sign(tmp_path / "second", keys["private"])
    shutil.copy(tmp_path / "second" / "lineage.sigstore.json", signed)
    refused(signed, keys["public"], "lineage.sigstore.json of net is not what was signed")
    (signed / "lineage.sigstore.json").unlink()
    refused(signed, keys["public"], "lineage.sigstore.json was signed, and is missing")


@pytest.mark.parametrize("name", ["extra.bin", "timing.cache", "model.engine", ".DS_Store", "cache/kernel.bin"])
def test_files_that_are_not_signed_are_a_refusal(signed, keys, name):
    (signed / name).parent.mkdir(exist_ok=True)
    (signed / name).write_bytes(b"\0")
    refused(signed, keys["public"], rf"{name} lies in .*")


@pytest.mark.parametrize("name", ["profile.json", "convert.log", "model.sig", "lineage.sigstore.json", "matrix.npy"])
def test_links_are_a_refusal(signed, keys, name, tmp_path):
    (signed / name).rename(tmp_path / name)
    (signed / name).symlink_to(tmp_path / name)
    with pytest.raises(ArtifactError, match="link"):
        deploykit.load(signed, key=keys["public"])


@pytest.mark.parametrize(
    "hidden", [["matrix.npy"], ["."], [""], ["*"], ["sub"], ["manifest.json"], ["/"], ["../net/matrix.npy"]]
)
def test_a_signature_that_leaves_out_what_may_be_read_is_a_refusal(signed, keys, hidden):
    def change(statement):
        statement["predicate"]["serialization"]["ignore_paths"] += hidden

    resigned(signed, keys, change)
    refused(signed, keys["public"], "the signature leaves out .*, which may be read")


def test_a_record_that_is_left_out_never_hides_a_file_of_the_manifest(signed, keys):
    def change(statement):
        gone = [one for one in statement["predicate"]["resources"] if one["name"] != "matrix.npy"]
        statement["predicate"]["resources"] = gone
        statement["subject"][0]["digest"]["sha256"] = root_digest(one["digest"] for one in gone)

    resigned(signed, keys, change)
    refused(signed, keys["public"], "matrix.npy of net is not signed")


CHANGES = {
    "predicate": lambda s: s.update(predicateType="https://example.org/other"),
    "type": lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"),
    "subject": lambda s: s["subject"][0]["digest"].update(sha256="0" * 64),
    "two subjects": lambda s: s["subject"].append(s["subject"][0]),
    "method": lambda s: s["predicate"]["serialization"].update(method="shards"),
    "hash": lambda s: s["predicate"]["serialization"].update(hash_type="blake2"),
    "links": lambda s: s["predicate"]["serialization"].update(allow_symlinks=True),
    "twice": lambda s: s["predicate"]["resources"].append(s["predicate"]["resources"][0]),
    "outside": lambda s: s["predicate"]["resources"][0].update(name="../outside"),
    "absolute": lambda s: s["predicate"]["resources"][0].update(name="/etc/passwd"),
    "algorithm": lambda s: s["predicate"]["resources"][0].update(algorithm="md5"),
    "digest": lambda s: s["predicate"]["resources"][0].update(digest="AA" * 32),
    "no resources": lambda s: s["predicate"].pop("resources"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_other_statements_by_the_right_key_are_a_refusal(signed, keys, change):
    resigned(signed, keys, change)
    with pytest.raises(ArtifactError):
        deploykit.load(signed, key=keys["public"])


def test_a_field_that_later_versions_add_to_the_statement_is_passed_over(signed, keys):
    resigned(signed, keys, lambda statement: statement["predicate"].update(later={"a": 1}))
    assert deploykit.load(signed, key=keys["public"]).vouched


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"{" * 5000, b'{"a":' * 99], ids=repr)
def test_what_is_no_bundle_is_a_refusal(signed, keys, data):
    (signed / "model.sig").write_bytes(data)
    refused(signed, keys["public"], "model.sig")


def test_a_bundle_spelled_otherwise_is_a_refusal(signed, keys):
    path = signed / "model.sig"
    text, found = path.read_text(), json.loads(path.read_text())
    path.write_text(json.dumps(found, indent=2))
    assert deploykit.load(signed, key=keys["public"]).vouched  # older versions of the stock tool write it so
    for other in (text + " ", text.replace(",", ", ", 1), text.replace("payload", "p\\u0061yload", 1)):
        path.write_text(other)
        refused(signed, keys["public"], "altered")
    found["dsseEnvelope"]["further"] = 1
    path.write_text(json.dumps(found))
    refused(signed, keys["public"], "further")


def test_base64_with_bits_that_mean_nothing_is_a_refusal(signed, keys):
    path = signed / "model.sig"
    found = json.loads(path.read_text())
    for name, place in (("payload", found["dsseEnvelope"]), ("sig", found["dsseEnvelope"]["signatures"][0])):
        text = place[name]
        if text.endswith("="):
            last = text.rstrip("=")[-1]
            other = chr(ord(last) + 1)
            same = text.rstrip("=")[:-1] + other + "=" * text.count("=")
            if base64.b64decode(same) != base64.b64decode(text):
                continue
            place[name] = same
            path.write_text(json.dumps(found, separators=(",", ":")))
            refused(signed, keys["public"], "altered")


def test_every_altered_byte_is_a_refusal(signed, keys):
    """A thousand bytes of payload, manifest, golden data, lineage and signature, each set to another value."""
    rng, tried = random.Random(18), 0
    for name in ("matrix.npy", "golden.safetensors", "manifest.json", "lineage.sigstore.json", "model.sig"):
        path = signed / name
        whole = path.read_bytes()
        for _ in range(200):
            place = rng.randrange(len(whole))
            data = bytearray(whole)
            data[place] ^= rng.randrange(1, 256)
            path.write_bytes(data)
            with pytest.raises(ArtifactError):
                deploykit.load(signed, key=keys["public"])
            tried += 1
        path.write_bytes(whole)
    assert tried == 1000
    assert deploykit.load(signed, key=keys["public"]).vouched


def test_what_signing_would_not_cover_is_not_signed(artifact, keys):
    (artifact / "timing.cache").write_bytes(b"\0")
    with pytest.raises(ArtifactError, match=r"timing.cache lies in .*, and a signature would not cover it"):
        sign(artifact, keys["private"])
    assert not (artifact / "model.sig").exists()


def test_a_damaged_artifact_is_not_signed(artifact, keys):
    (artifact / "matrix.npy").write_bytes(b"\0")
    with pytest.raises(ArtifactError, match=r"matrix.npy has 1 bytes"):
        sign(artifact, keys["private"])


def test_keys_that_cannot_be_used_say_why(artifact, keys, tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    with pytest.raises(UsageError, match="is a private key, which nobody but the signer should have"):
        deploykit.load(artifact, key=keys["private"])
    with pytest.raises(UsageError, match=r"no private key that can be read.*\n  -> one is made by: openssl"):
        sign(artifact, keys["public"])
    with pytest.raises(UsageError, match=r"cannot read .*absent"):
        sign(artifact, tmp_path / "absent")
    (tmp_path / "ed.pub").write_bytes(
        ed25519.Ed25519PrivateKey.generate()
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(UsageError, match="another kind than an elliptic curve"):
        deploykit.load(artifact, key=tmp_path / "ed.pub")


def test_an_encrypted_key_needs_its_password(artifact, keys, tmp_path, monkeypatch):
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(keys["private"].read_bytes(), None)
    kept = serialization.BestAvailableEncryption(b"secret words")
    path = tmp_path / "locked.pem"
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, kept))
    with pytest.raises(UsageError, match=r"is encrypted, and no password is given\n  -> set DEPLOYKIT_KEY_PASSWORD"):
        sign(artifact, path)
    with pytest.raises(UsageError) as wrong:
        sign(artifact, path, password="other words")
    assert "other words" not in str(wrong.value)
    monkeypatch.setenv("DEPLOYKIT_KEY_PASSWORD", "secret words")
    sign(artifact, path)
    assert deploykit.load(artifact, key=keys["public"]).vouched


def test_the_commit_of_a_checkout_is_recorded_without_passwords(artifact, keys, tmp_path):
    place = tmp_path / "checkout"
    place.mkdir()

    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.hooksPath=/dev/null")
        done = subprocess.run(["git", "-C", place, *who, *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    (place / "model.py").write_text("x = 1\n")
    git("add", ".")
    git("commit", "-qm", "first")
    git("remote", "add", "origin", "https://me:s3cret@example.org/models.git?token=s3cret")
    sign(artifact, keys["private"], source=place)
    found = read_lineage(deploykit.load(artifact, key=keys["public"]), read_public_key(keys["public"]))
    assert (found.commit, found.dirty) == (git("rev-parse", "HEAD"), False)
    assert found.url == "https://example.org/models.git"
    (place / "model.py").write_text("x = 2\n")
    assert sign(artifact, keys["private"], source=place).source.dirty
    with pytest.raises(UsageError, match="there is no folder"):
        sign(artifact, keys["private"], source=tmp_path / "absent")
    outside = tmp_path / "outside"
    outside.mkdir()
    if not any((parent / ".git").exists() for parent in outside.parents):
        assert sign(artifact, keys["private"], source=outside).source is None


def test_a_third_party_reads_the_lineage_with_a_public_key_alone(signed, keys):
    """DSSE by its specification, written out: what an auditor without deploykit does."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    bundle = json.loads((signed / "lineage.sigstore.json").read_text())["dsseEnvelope"]
    payload, kind = base64.b64decode(bundle["payload"]), bundle["payloadType"].encode()
    message = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    key = serialization.load_pem_public_key(keys["public"].read_bytes())
    key.verify(base64.b64decode(bundle["signatures"][0]["sig"]), message, ec.ECDSA(hashes.SHA256()))
    statement = json.loads(payload)
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert statement["subject"] == [{"name": "manifest.json", "digest": {"sha256": deploykit.load(signed).fingerprint}}]
    names = [one["name"] for one in statement["predicate"]["buildDefinition"]["resolvedDependencies"]]
    assert names == ["model", "recipe", "calibration"]


def test_a_statement_is_what_its_reader_reads():
    digests = {"sub/b": "b" * 64, "a": "a" * 64, "sub-c": "c" * 64}
    written = statement_of("net", digests)
    assert signed_files(json.dumps(written).encode()) == digests
    assert [one["name"] for one in written["predicate"]["resources"]] == ["a", "sub/b", "sub-c"]


def test_a_folder_that_is_replaced_meanwhile_is_not_taken_for_what_was_signed(signed, keys, toy, tmp_path, monkeypatch):
    """Another whole artifact takes the place of the loaded one before its signature is read."""
    from deploykit_trust import verifying

    toy.write_artifact(tmp_path / "second", tool_versions={"toy": "2.0"})
    sign(tmp_path / "second", keys["private"])
    real = verifying._payload

    def swapped(folder, key):
        os.rename(signed, tmp_path / "old")
        os.rename(tmp_path / "second", signed)
        return real(folder, key)

    monkeypatch.setattr(verifying, "_payload", swapped)
    refused(signed, keys["public"], "manifest.json of net is not what was signed")


def test_the_example_of_an_auditor(signed, keys, capsys):
    import runpy
    from pathlib import Path

    main = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "check_lineage.py"))["main"]
    main(str(signed), str(keys["public"]))
    said = capsys.readouterr().out
    assert "model: sha256 " + "0" * 64 in said and "made with toy 1.0" in said and "this is it" in said
    (signed / "manifest.json").write_text("{}")
    with pytest.raises(SystemExit, match="is not the artifact that this statement is about"):
        main(str(signed), str(keys["public"]))


def test_what_a_killed_writer_left_stops_nobody(signed, keys):
    """A part is never read; signing again removes it."""
    left = signed / ".model.sig.00000000-00000000-000000000000.part"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    assert deploykit.load(signed, key=keys["public"]).vouched
    (signed / ".other.00000000-00000000-000000000000.part").write_bytes(b"half")
    with pytest.raises(ArtifactError, match="lies in"):
        deploykit.load(signed, key=keys["public"])
    (signed / ".other.00000000-00000000-000000000000.part").unlink()


def test_a_signer_that_is_killed_leaves_the_old_signature_or_none_that_holds(artifact, keys):
    """Killed between lineage and signature: the next load is refused, and signing again mends it."""
    program = (
        "import os, sys, signal\n"
        "from deploykit_trust import signing\n"
        "real = signing.write_file\n"
        "def write(path, data):\n"
        "    if path.name == 'model.sig': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    real(path, data)\n"
        "signing.write_file = write\n"
        "signing.sign(sys.argv[1], sys.argv[2])\n"
    )
    import sys

    sign(artifact, keys["private"])
    paths = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", program, artifact, keys["private"]], env={**os.environ, "PYTHONPATH": paths}, check=False
    )
    assert done.returncode == -9
    refused(artifact, keys["public"], r"lineage\.sigstore\.json of net is not what was signed")
    sign(artifact, keys["private"])
    assert deploykit.load(artifact, key=keys["public"]).vouched
