"""`inspect`, `verify`, `profile` and `compare` on artifacts of the toy toolchain."""

import os
from dataclasses import replace

import numpy as np
import pytest

from deploykit.artifact import manifest as layout
from deploykit.artifact.golden import Golden, golden_bytes
from deploykit.artifact.manifest import PendingBuild
from deploykit.contract.achieved import Delegation
from deploykit.contract.errors import DeviceError
from deploykit.contract.precision import Evidence, Precision
from deploykit.contract.session import OpTime
from deploykit.judge.parity import TaskMetric
from deploykit.plugin.artifact import load

# -- inspect ----------------------------------------------------------------------------------------------------


def test_inspect_page(cli, artifact):
    page = cli("inspect", "art").out
    for words in (
        "verified",
        "toy-board",
        "int8 asked for; multiply-accumulates: 90 % int8, 10 % float32",
        "x: float32[1, 4]",
        "output: float32[1, 3]",
        "the toy's graph",
        "counted by hand",
        "excluded by pattern [head]",
        "float PyTorch -> artifact",
        "34.5 dB",
        "31.2 dB",
        "SQNR >= 18.0 dB, cosine >= 0.99",
        "calibration data",
        "data, 16 samples, method default",
        "toy 1.0",
        "gain = 1.0",
        "matrix.npy",
        "golden.safetensors",
        "1.25 ms / 1.5 ms / 2 ms",
        "2.00 x as fast",
    ):
        assert words in page, words


def test_inspect_document(cli, artifact):
    document = cli("inspect", "art", "--json").document
    assert (document["path"], document["status"], document["precision"]) == ("art", "verified", "int8")
    assert document["fingerprint"] == artifact.fingerprint
    assert document["achieved"]["macs"] == {"int8": 90, "float32": 10}
    assert document["parity"]["layers"][0]["module_path"] == "fc"
    assert document["profile"]["worth_it"] == 2.0


def test_inspect_needs_no_runtime_and_no_records(cli, toy, artifact):
    toy.write_artifact(
        artifact.path.with_name("bare"),
        toolchain="never-heard-of",
        parity=None,
        calibration=None,
        status=layout.NEEDS_DEVICE_BUILD,
        build=PendingBuild("trtexec --onnx=model.onnx", "no GPU here"),
        parent="3" * 64,
        metadata={"opset": 20, "listing": ["a layer of an engine"] * 99},
    )
    page = cli("inspect", "bare").out
    assert "(2376 characters; --json has them)" in page and page.count("a layer of an engine") < 20
    assert len(cli("inspect", "bare", "--json").document["metadata"]["listing"]) == 99
    for words in ("needs device build", "trtexec --onnx=model.onnx", "no GPU here", "3" * 64, "opset = 20"):
        assert words in page
    assert "Parity" not in page and "Profile" not in page


def test_inspect_a_failed_artifact(cli, toy, artifact):
    parity = toy.make_parity(
        passed=False,
        failures=("SQNR 3 dB is below 18 dB",),
        metric=TaskMetric(0.9, 0.2, 0.01),
        notes=("seen on a bus",),
    )
    toy.write_artifact(artifact.path.with_name("bad"), status=layout.FAILED, parity=parity)
    page = cli("inspect", "bad").out
    for words in ("failed", "SQNR 3 dB is below 18 dB", "0.9 -> 0.2", "seen on a bus"):
        assert words in page


def test_inspect_says_that_data_was_made_up(cli, toy, artifact):
    made_up = replace(artifact.manifest.calibration, source="synthetic")
    toy.write_artifact(artifact.path.with_name("synthetic"), calibration=made_up)
    assert "made-up data, as asked for, 16 samples" in cli("inspect", "synthetic").out


def test_inspect_shortens_long_lists_and_says_so(cli, toy, artifact):
    layer = artifact.achieved.layers[1]
    many = replace(artifact.achieved, layers=tuple(replace(layer, module_path=f"block.{i}") for i in range(30)))
    toy.write_artifact(artifact.path.with_name("many"), achieved=many)
    result = cli("inspect", "many")
    assert "block.19" in result.out and "block.20" not in result.out and "10 more" in result.out
    assert len(cli("inspect", "many", "--json").document["achieved"]["layers"]) == 30


# -- verify -----------------------------------------------------------------------------------------------------


def test_verify(cli, artifact):
    result = cli("verify", "art")
    assert result.code == 0
    for words in ("2 files are as the manifest says", "2 samples give the same outputs", "identical", "30.0 dB"):
        assert words in result.out
    document = cli("verify", "art", "--json").document
    assert document["verified"] and document["files"] == 2 and document["samples"] == 2
    assert document["metrics"]["sqnr_db"] == 200.0 and document["tolerance"]["min_sqnr_db"] == 30.0


def test_verify_notices_another_result(cli, toy, artifact):
    golden = artifact.golden()
    folder = artifact.path.with_name("off")
    folder.mkdir()
    np.save(folder / "matrix.npy", toy.MATRIX)
    off = tuple({"output": sample["output"] + 5.0} for sample in golden.outputs)
    (folder / layout.GOLDEN_NAME).write_bytes(golden_bytes(Golden(golden.inputs, off)))
    (folder / layout.MANIFEST_NAME).write_bytes(toy.make_manifest(toy.list_files(folder)).to_json())
    result = cli("verify", "off", "--json")
    assert result.code == 6 and "other outputs here" in result.document["error"]["message"]


def test_verify_where_it_must_be_built_first(cli, toy, artifact):
    toy.write_artifact(artifact.path.with_name("pending"), build=PendingBuild("make it", "no compiler"))
    result = cli("verify", "pending")
    assert result.code == 10 and "no compiler" in result.err and "-> make it" in result.err


def test_verify_without_the_runtime(cli, toy, artifact):
    toy.write_artifact(
        artifact.path.with_name("other"), toolchain="absent", target="absent-board", device="absent-board"
    )
    result = cli("verify", "other")
    assert result.code == 3 and 'pip install "toy-plugin[absent-runtime]"' in result.err


# -- profile ----------------------------------------------------------------------------------------------------


def test_profile(cli, artifact):
    result = cli("profile", "art", "--seconds", "0.01", "--threads", "1")
    assert result.code == 0
    for words in ("device", "ms", "batch 1, 1 threads", "4.1 kB", "MatMul"):
        assert words in result.out
    assert load("art").profile.runs == 100, "not saved unless asked"


def test_profile_document_and_save(cli, artifact):
    result = cli("profile", "art", "--seconds", "0.01", "--save", "--json")
    document = result.document
    assert document["saved"] and document["profile"]["worth_it"] is None
    assert "no baseline" in result.err
    assert load("art").profile.runs == document["profile"]["runs"]


@pytest.mark.parametrize("command", ["verify", "profile"])
def test_a_board_that_is_not_there(cli, artifact, command, monkeypatch, tmp_path):
    """Every toolchain can be asked for; what is there answers."""
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text("#!/bin/sh\necho 'No route to host' >&2\nexit 255\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", str(ssh.parent), prepend=os.pathsep)
    done = cli(command, "art", "--board", "user@board")
    assert done.code == 10
    assert "user@board cannot be reached, or the line was cut: No route to host" in " ".join(done.err.split())
    assert "copies a program to user@board over SSH and executes it there" in done.err


def test_under_emulation_a_profile_is_an_estimate_from_the_table(toy, artifact, monkeypatch):
    """The toy's device has no rates; with some, the figure is marked."""
    monkeypatch.setattr(toy.ToyTarget, "evidence", lambda self, artifact: Evidence.EMULATOR)
    with pytest.raises(DeviceError, match="no published rates of toy-board"):
        artifact.plugin().profile(artifact)
    monkeypatch.setattr(toy, "BOARD", replace(toy.BOARD, peak_tops={"int8": 1.0, "fp32": 0.1}, source="made up"))
    assert artifact.plugin().profile(artifact).evidence is Evidence.ESTIMATE


def test_profile_in_turns_with_a_baseline(cli, toy, artifact):
    toy.write_artifact(artifact.path.with_name("float"), precision=Precision.FP32)
    document = cli("profile", "art", "--seconds", "0.01", "--baseline", "float", "--save", "--json").document
    assert document["profile"]["baseline"] == "float" and document["profile"]["worth_it"] > 0
    assert load("art").profile.baseline == "float"


def test_a_baseline_of_another_toolchain_is_refused(cli, toy, artifact):
    toy.write_artifact(
        artifact.path.with_name("other"), toolchain="absent", target="absent-board", device="absent-board"
    )
    result = cli("profile", "art", "--baseline", "other")
    assert result.code == 2 and "deploykit compare" in result.err


def test_profile_replaces_a_damaged_record(cli, artifact):
    (artifact.path / layout.PROFILE_NAME).write_text("{")
    broken = cli("inspect", "art")
    assert broken.code == 9 and "deploykit profile --save" in broken.err
    assert cli("profile", "art", "--seconds", "0.01", "--save").code == 0
    assert cli("inspect", "art").code == 0


def test_an_estimate_is_shown_as_what_it_is(cli, toy, artifact):
    """No runs, threads or percentiles that never were; times below a microsecond keep their digits."""
    profile = toy.make_profile(
        evidence=Evidence.ESTIMATE, runs=0, warm_up=0, threads=0, op_times=(OpTime("conv", "conv", "c1", 0.0123),)
    )
    artifact.save_profile(replace(profile, host=replace(toy.HOST, os="device table of toy-board")))
    page = cli("inspect", "art").out
    rows = rows_of(page[page.index("Profile") :])
    assert rows["evidence"].strip() == "estimate: computed from the device table of toy-board; nothing was run"
    assert rows["latency"].strip() == "1.25 ms" and "800 /s" in rows["throughput"]
    assert "measured" not in rows and "host" not in rows and "peak memory" not in rows
    assert "us (estimate)" in page and "0.0123" in page
    assert rows_of(cli("compare", "art").out)["worth it"].count("estimate") == 1


def test_latency_by_threads_and_delegation_are_in_the_page(cli, toy, artifact):
    taken = Delegation("XNNPACK", operators=9, delegated=7, macs_fraction=0.8, partitions=2, left={"GELU": 2})
    latency = toy.make_profile().latency_ms
    toy.write_artifact(
        artifact.path.with_name("threads"),
        achieved=replace(artifact.achieved, delegation=taken),
        profile=toy.make_profile(latency_by_threads_ms={"1": latency, "2": latency}, operators={"CONV_2D": 3}),
    )
    said = "XNNPACK takes 7 of 9 operators, not 2 GELU; 80.0% of multiply-accumulates, in 2 partitions"
    page = cli("inspect", "threads").out
    assert said in page and "Latency by threads" in page and "3 CONV_2D" in page
    assert said in cli("profile", "threads", "--seconds", "0.01").out


# -- compare ----------------------------------------------------------------------------------------------------


@pytest.fixture
def two(toy, artifact):
    """The int8 artifact, and a float one that was judged and timed elsewhere."""
    toy.write_artifact(
        artifact.path.with_name("float"),
        precision=Precision.FP32,
        achieved=replace(artifact.achieved, macs={"float32": 100}),
        parity=toy.make_parity(evidence=Evidence.REFERENCE, sqnr_db=200.0, metric=TaskMetric(0.9, 0.89, 0.1)),
        profile=toy.make_profile(evidence=Evidence.ESTIMATE, threads=8, baseline_latency_ms=None),
    )
    return "art", "float"


def rows_of(page: str) -> dict[str, str]:
    rows = {}
    for line in page.splitlines():
        name, _, rest = line.strip().partition("  ")
        rows[name] = rest
    return rows


def test_compare_is_one_table(cli, two):
    rows = rows_of(cli("compare", *two).out)
    assert "int8" in rows["precision"] and "fp32" in rows["precision"]
    assert "90 % int8, 10 % float32" in rows["achieved (MACs)"] and "100 % float32" in rows["achieved (MACs)"]
    assert "2.00 x the fp32 artifact" in rows["worth it"]
    assert rows.keys() >= {"target", "status", "evidence", "size", "SQNR", "cosine", "top-1 agreement", "throughput"}


def test_figures_of_other_evidence_are_labelled_and_noted(cli, two):
    page = cli("compare", *two).out
    rows = rows_of(page)
    assert "34.5 dB" in rows["SQNR"] and "identical (reference)" in rows["SQNR"]
    assert "800 /s (estimate)" in rows["throughput"]
    assert "parity reference, profile estimate" in rows["evidence"]
    for words in ("parity figures have different evidence", "speed figures have different evidence", "thread counts"):
        assert words in page


def test_compare_document(cli, two):
    document = cli("compare", *two, "--json").document
    first, second = document["artifacts"]
    assert (first["path"], first["precision"], first["parity_evidence"]) == ("art", "int8", "device")
    assert first["achieved_macs"] == {"int8": 0.9, "float32": 0.1}
    assert first["latency_ms"]["p50"] == 1.25 and first["worth_it"] == 2.0
    assert second["worth_it"] is None and second["metric"]["artifact"] == 0.89
    assert len(document["notes"]) == 3


def test_compare_notes_other_models_and_machines(cli, toy, artifact):
    toy.write_artifact(
        artifact.path.with_name("other"),
        fingerprints={"model": "9" * 64},
        profile=toy.make_profile(host=replace(toy.HOST, cores=64), batch_size=8),
    )
    notes = cli("compare", "art", "other", "--json").document["notes"]
    assert [note.split(",")[0] for note in notes] == [
        "the artifacts are of different models",
        "the speed figures are of different machines",
        "the speed figures are of different batch sizes",
    ]


def test_compare_one_and_one_without_figures(cli, toy, artifact):
    assert cli("compare", "art", "--json").document["notes"] == []
    toy.write_artifact(artifact.path.with_name("bare"), parity=None)
    rows = rows_of(cli("compare", "bare").out)
    assert rows["SQNR"].strip() == "-" and rows["throughput"].strip() == "-"
    assert "task metric" not in rows


def test_a_table_says_what_a_vendors_compiler_proved(cli, toy, artifact):
    achieved = replace(artifact.achieved, evidence=Evidence.COMPILED)
    toy.write_artifact(artifact.path.with_name("made"), achieved=achieved)
    assert "achieved compiled, parity" in cli("compare", "made").out
    (record,) = cli("compare", "made", "--json").document["artifacts"]
    assert record["achieved_evidence"] == "compiled"
