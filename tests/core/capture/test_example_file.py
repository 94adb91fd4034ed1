"""Example inputs from a calibration file: the first row of what the file has, for models that tell none."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

from deploykit.capture import open_model
from deploykit.capture.example_file import first_rows
from deploykit.contract.errors import CalibrationError


class TwoInputs(nn.Module):
    def forward(self, image, features):
        return image.sum() + features.sum()


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {"image": rng.random((4, 3, 5), dtype=np.float32), "features": rng.integers(0, 9, (4, 2))}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_first_row_of_every_array(tmp_path, arrays, suffix):
    path = tmp_path / f"data{suffix}"
    np.savez(path, **arrays) if suffix == ".npz" else save_file(arrays, path)
    rows = first_rows(path)
    assert rows.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(rows[name].numpy(), array[:1])


def test_column_major_compressed_and_double_arrays(tmp_path):
    array = np.asfortranarray(np.arange(24.0).reshape(4, 3, 2))
    np.savez_compressed(tmp_path / "data.npz", x=array)
    row = first_rows(tmp_path / "data.npz")["x"]
    assert row.dtype is torch.float32
    np.testing.assert_array_equal(row.numpy(), array[:1])


def test_what_cannot_be_a_batch_is_left_out(tmp_path):
    np.savez(tmp_path / "data.npz", number=np.float32(3.0), none=np.zeros((0, 3)), objects=np.array([{}], dtype=object))
    assert first_rows(tmp_path / "data.npz") == {}


@pytest.mark.parametrize("name", ["missing.npz", "garbage.npz", "garbage.safetensors"])
def test_a_file_that_cannot_be_read(tmp_path, name):
    if name.startswith("garbage"):
        (tmp_path / name).write_bytes(b"no archive")
    with pytest.raises(CalibrationError, match=name):
        first_rows(tmp_path / name)


def test_arguments_are_found_by_name(tmp_path, arrays):
    np.savez(tmp_path / "data.npz", labels=np.zeros(4, np.int64), **arrays)
    _, found, _ = open_model(TwoInputs(), None, tmp_path / "data.npz")
    assert isinstance(found, dict) and found.keys() == {"image", "features"}


def test_the_only_array_may_have_any_name(tmp_path):
    np.savez(tmp_path / "data.npz", np.zeros((2, 3), np.float32))
    _, found, _ = open_model(nn.Linear(3, 1), None, tmp_path / "data.npz")
    assert isinstance(found, tuple) and found[0].shape == (1, 3)


def test_names_that_fit_nothing(tmp_path, arrays):
    np.savez(tmp_path / "data.npz", **arrays)
    assert open_model(nn.Linear(3, 1), None, str(tmp_path / "data.npz"))[1] is None


def test_a_model_that_tells_its_inputs_is_believed(tmp_path, arrays):
    model = TwoInputs()
    model.example_input_array = (torch.zeros(1, 3), torch.zeros(1, 2))
    assert open_model(model, None, tmp_path / "not read.npz")[1] is None
