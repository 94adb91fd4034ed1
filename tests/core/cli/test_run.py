"""`deploykit run`: arrays in, arrays out."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deploykit.contract.tensors import TensorSpec

ROWS = np.random.default_rng(0).random((6, 4), dtype=np.float32)


@pytest.fixture
def data(artifact, tmp_path):
    np.savez(tmp_path / "data.npz", x=ROWS)
    return "data.npz"


def test_rows_beyond_the_batch_size_are_run_one_batch_at_a_time(cli, toy, data, tmp_path):
    result = cli("run", "art", "--input", data, "--output", "out.npz")
    assert result.code == 0 and "output: float32[6, 3]" in result.out and "written to out.npz" in result.out
    with np.load(tmp_path / "out.npz") as outputs:
        # one row at a time sums in another order than all rows at once
        np.testing.assert_allclose(outputs["output"], ROWS @ toy.MATRIX, rtol=1e-6)


def test_document(cli, data):
    document = cli("run", "art", "-i", data, "-o", "new/out.npz", "--threads", "1", "--json").document
    assert document["runs"] == 6
    assert document["outputs"] == {"output": {"dtype": "float32", "shape": [6, 3]}}


def test_safetensors_both_ways(cli, toy, artifact, tmp_path):
    save_file({"x": ROWS[:1]}, tmp_path / "in.safetensors")
    assert cli("run", "art", "-i", "in.safetensors", "-o", "out.safetensors").code == 0
    np.testing.assert_array_equal(load_file(tmp_path / "out.safetensors")["output"], ROWS[:1] @ toy.MATRIX)


def test_the_only_array_may_have_any_name(cli, artifact, tmp_path):
    np.savez(tmp_path / "unnamed.npz", ROWS)
    assert cli("run", "art", "-i", "unnamed.npz", "-o", "out.npz").code == 0


def test_other_arrays_are_noted(cli, artifact, tmp_path):
    np.savez(tmp_path / "more.npz", x=ROWS, labels=np.zeros(6))
    result = cli("run", "art", "-i", "more.npz", "-o", "out.npz")
    assert result.code == 0 and "labels, which the model does not take" in result.err


def test_a_dynamic_batch_is_one_run(cli, toy, artifact, data):
    inputs, outputs = (TensorSpec("x", ("n", 4), "float32"),), (TensorSpec("output", ("n", 3), "float32"),)
    toy.write_artifact(artifact.path.with_name("dynamic"), inputs=inputs, outputs=outputs)
    assert cli("run", "dynamic", "-i", data, "-o", "out.npz", "--json").document["runs"] == 1


def test_the_same_run_gives_the_same_bytes(cli, data, tmp_path):
    for name in ("a.npz", "b.npz"):
        cli("run", "art", "-i", data, "-o", name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"y": ROWS, "z": ROWS}, "has the arrays y, z; the model's inputs are x"),
        ({"x": ROWS.astype(np.int32)}, "dtype int32"),
        ({"x": ROWS[:, :3]}, "wrong shape"),
        ({"x": ROWS[0]}, "wrong shape"),
        ({"x": np.float32(1.0)}, "wrong shape"),
        ({"x": ROWS[:0]}, "wrong shape"),
        ({"x": np.array([{}], dtype=object)}, "cannot be read"),
    ],
)
def test_arrays_that_do_not_fit(cli, artifact, tmp_path, arrays, words):
    np.savez(tmp_path / "bad.npz", **arrays)
    result = cli("run", "art", "-i", "bad.npz", "-o", "out.npz")
    assert result.code == 2 and words in result.err and "Traceback" not in result.err
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize("name", ["garbage.npz", "garbage.safetensors", "missing.npz", "array.npz", "data.txt"])
def test_files_that_cannot_be_read(cli, artifact, tmp_path, name):
    (tmp_path / "garbage.npz").write_bytes(b"PK\x03\x04 no archive")
    (tmp_path / "garbage.safetensors").write_bytes(b"\xff" * 20)
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, ROWS)
    result = cli("run", "art", "-i", name, "-o", "out.npz")
    assert result.code == 2 and name in result.err and "Traceback" not in result.err


@pytest.mark.parametrize("name", ["out.txt", "folder.npz"])
def test_outputs_that_cannot_be_written(cli, data, tmp_path, name):
    (tmp_path / "folder.npz").mkdir()
    result = cli("run", "art", "-i", data, "-o", name)
    assert result.code == 2 and name in result.err


def test_outputs_without_a_batch_axis_cannot_be_joined(cli, toy, artifact, data):
    toy.write_artifact(artifact.path.with_name("pooled"), outputs=(TensorSpec("output", (3,), "float32"),))
    result = cli("run", "pooled", "-i", data, "-o", "out.npz")
    assert result.code == 2 and "no batch axis" in result.err and "pass 1 rows" in result.err
