"""Calibration data in every form users have it, and the errors for what does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from deploykit.capture import CapturedModel, capture
from deploykit.contract.errors import CalibrationError, UsageError
from deploykit_calibration.batching import DYNAMIC_ROWS, Batch, DataDigest
from deploykit_calibration.data import open_data


class Two(nn.Module):
    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return image.mean((1, 2)) * mask.sum(1)


@pytest.fixture(scope="module")
def one() -> CapturedModel:
    """Static, batch of 4."""
    return capture(nn.Linear(3, 2), example_inputs=(torch.zeros(4, 3),))


@pytest.fixture(scope="module")
def dynamic() -> CapturedModel:
    return capture(nn.Linear(3, 2), example_inputs=(torch.zeros(4, 3),), dynamic_batch=True)


@pytest.fixture(scope="module")
def two() -> CapturedModel:
    """Two inputs of different dtype, batch of 2."""
    mask = torch.tensor([[3, 7], [5, 4]])
    return capture(Two(), example_inputs={"image": torch.ones(2, 3, 3), "mask": mask})


ROWS = torch.arange(30.0).reshape(10, 3)


def stream(captured: CapturedModel, data: Any, **options: Any) -> list[Batch]:
    return list(open_data(captured, data, **options).stream(captured))


def rows_of(batches: list[Batch], name: str = "input") -> Tensor:
    return torch.cat([batch.feeds[name][: batch.rows] for batch in batches])


def npz(folder: Path) -> Path:
    np.savez(folder / "rows.npz", input=ROWS.numpy())
    return folder / "rows.npz"


def compressed(folder: Path) -> Path:
    np.savez_compressed(folder / "rows.npz", arr_0=np.asfortranarray(ROWS.numpy()))
    return folder / "rows.npz"


def tensors_file(folder: Path) -> Path:
    save_file({"input": ROWS, "label": torch.zeros(10)}, folder / "rows.safetensors")
    return folder / "rows.safetensors"


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        yield from ROWS


FORMS: dict[str, Callable[[Path], Any]] = {
    "one tensor": lambda _: ROWS,
    "one array": lambda _: ROWS.numpy(),
    "one dict": lambda _: {"input": ROWS},
    "singles": lambda _: [row[None] for row in ROWS],
    "uneven": lambda _: [ROWS[:1], ROWS[1:8], ROWS[8:]],
    "arrays": lambda _: [ROWS[:5].numpy(), ROWS[5:].numpy()],
    "with labels": lambda _: [(ROWS[:5], torch.zeros(5)), [ROWS[5:], torch.zeros(5)]],
    "dicts": lambda _: [{"input": ROWS[:5], "label": 1}, {"input": ROWS[5:]}],
    "generator": lambda _: (row[None] for row in ROWS),
    "callable": lambda _: lambda: (row[None] for row in ROWS),
    "loader": lambda _: DataLoader(TensorDataset(ROWS, torch.zeros(10)), batch_size=3),
    "loader without length": lambda _: DataLoader(Endless(), batch_size=3),
    "npz": npz,
    "npz path as text": lambda folder: str(npz(folder)),
    "compressed npz in Fortran order": compressed,
    "safetensors": tensors_file,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_samples_in_batches_of_the_graph(
    form: str, one: CapturedModel, tmp_path: Path
) -> None:
    batches = stream(one, FORMS[form](tmp_path))
    assert [batch.rows for batch in batches] == [4, 4, 2]
    assert all(batch.feeds["input"].shape == (4, 3) for batch in batches)
    torch.testing.assert_close(rows_of(batches), ROWS, rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_fingerprint(form: str, one: CapturedModel, tmp_path: Path) -> None:
    digest, reference = DataDigest(), DataDigest()
    list(open_data(one, FORMS[form](tmp_path)).stream(one, digest))
    list(open_data(one, ROWS).stream(one, reference))
    assert digest.hexdigest() == reference.hexdigest()


def test_the_fingerprint_sees_every_change(one: CapturedModel, two: CapturedModel) -> None:
    def fingerprint(captured: CapturedModel, data: Any, **options: Any) -> str:
        digest = DataDigest()
        list(open_data(captured, data, **options).stream(captured, digest))
        return digest.hexdigest()

    changed = ROWS.clone()
    changed[9, 2] += 1e-5
    reversed_ = ROWS.flip(0)
    found = {fingerprint(one, data) for data in (ROWS, changed, reversed_, ROWS[:9])}
    assert len(found) == 4
    assert fingerprint(one, ROWS, limit=9) == fingerprint(one, ROWS[:9])
    feeds = {"image": torch.rand(4, 3, 3), "mask": torch.arange(8).reshape(4, 2)}
    halves = [{n: x[:2] for n, x in feeds.items()}, {n: x[2:] for n, x in feeds.items()}]
    assert fingerprint(two, feeds) == fingerprint(two, halves)


def test_the_rest_of_a_static_batch_repeats_its_own_rows(one: CapturedModel) -> None:
    last = stream(one, ROWS)[-1].feeds["input"]
    torch.testing.assert_close(last, ROWS[[8, 9, 8, 9]], rtol=0, atol=0)
    lone = stream(one, [ROWS[:1]])[0]
    assert lone.rows == 1
    torch.testing.assert_close(lone.feeds["input"], ROWS[[0, 0, 0, 0]], rtol=0, atol=0)
    three = stream(one, [ROWS[:2], ROWS[2:3]])[0]
    torch.testing.assert_close(three.feeds["input"], ROWS[[0, 1, 2, 0]], rtol=0, atol=0)


def test_a_dynamic_batch_is_regrouped_for_speed(dynamic: CapturedModel) -> None:
    batches = stream(dynamic, [row[None] for row in ROWS])
    assert [len(batch.feeds["input"]) for batch in batches] == [DYNAMIC_ROWS, 2]
    assert [str(batch) for batch in batches] == ["batches 0 to 7", "batches 8 to 9"]
    assert [str(batch) for batch in stream(dynamic, [ROWS])] == ["batch 0", "batch 0"]


def test_a_loader_may_fill_the_same_buffer_again(one: CapturedModel) -> None:
    def reusing() -> Iterator[Tensor]:
        buffer = torch.empty(1, 3)
        for row in ROWS:
            yield buffer.copy_(row)

    torch.testing.assert_close(rows_of(stream(one, reusing())), ROWS, rtol=0, atol=0)


def test_arrays_that_pytorch_cannot_view_are_copied(one: CapturedModel) -> None:
    array = ROWS.numpy().copy()
    array.flags.writeable = False
    torch.testing.assert_close(rows_of(stream(one, [array[:4], array[::-1][:4]])), ROWS[[0, 1, 2, 3, 9, 8, 7, 6]])


def test_limit_counts_samples(one: CapturedModel, dynamic: CapturedModel) -> None:
    torch.testing.assert_close(rows_of(stream(one, ROWS, limit=6)), ROWS[:6], rtol=0, atol=0)
    assert sum(b.rows for b in stream(dynamic, [ROWS, ROWS], limit=13)) == 13
    assert sum(b.rows for b in stream(one, ROWS, limit=99)) == 10
    with pytest.raises(UsageError, match="limit=0"):
        stream(one, ROWS, limit=0)


def test_limit_stops_reading(one: CapturedModel) -> None:
    def endless() -> Iterator[Tensor]:
        while True:
            yield ROWS

    assert sum(b.rows for b in stream(one, endless(), limit=12)) == 12


def test_synthetic_data_is_seeded_and_shaped_like_the_examples(two: CapturedModel) -> None:
    first, again, other = stream(two, "synthetic"), stream(two, "synthetic"), stream(two, "synthetic", seed=1)
    assert open_data(two, "synthetic").source == "synthetic"
    assert open_data(two, [1]).source == "data"
    mask = rows_of(first, "mask")
    assert mask.shape == (16, 2) and mask.dtype == torch.int64 and mask.min() >= 3 and mask.max() <= 7
    torch.testing.assert_close(rows_of(first, "image"), rows_of(again, "image"), rtol=0, atol=0)
    assert not torch.equal(rows_of(first, "image"), rows_of(other, "image"))
    assert sum(b.rows for b in stream(two, "synthetic", limit=5)) == 5


def check(captured: CapturedModel, data: Any, message: str, **options: Any) -> None:
    with pytest.raises(CalibrationError, match=message):
        stream(captured, data, **options)


@pytest.mark.parametrize("empty", [[], (), iter([]), lambda: [], DataLoader(TensorDataset(ROWS[:0]))])
def test_empty_data_is_refused(empty: Any, one: CapturedModel) -> None:
    check(one, empty, "data is empty")


def test_no_data_names_the_ways_out(one: CapturedModel) -> None:
    check(one, None, r'needs calibration data\n.*"synthetic"')


def test_an_iterator_that_was_used_before_says_so(one: CapturedModel) -> None:
    data = iter([ROWS])
    stream(one, data)
    check(one, data, "one-shot iterator that was used before is empty")


def test_an_iterator_that_ends_early_is_refused(one: CapturedModel) -> None:
    check(one, iter([ROWS]), "ended after 10 of the 16 samples", limit=16)


def test_data_shorter_than_its_length_is_refused(one: CapturedModel) -> None:
    class Short:
        def __len__(self) -> int:
            return 5

        def __iter__(self) -> Iterator[Tensor]:
            return iter([ROWS, ROWS])

    check(one, Short(), "said it has 5 batches and ended after 2")


@pytest.mark.parametrize(
    ("value", "word"), [(float("nan"), "NaN"), (float("inf"), "infinity"), (-float("inf"), "infinity")]
)
def test_values_that_are_not_finite_name_batch_and_tensor(value: float, word: str, one: CapturedModel) -> None:
    bad = ROWS.clone()
    bad[2, 1] = value
    check(one, [ROWS, ROWS, bad], rf"batch 2: input 'input' holds {word}, first at \(2, 1\)")


def test_tensors_whose_values_cannot_be_read_say_what_they_are(one: CapturedModel) -> None:
    check(one, [ROWS.to_sparse()], "batch 0: input 'input' is a tensor of the layout torch.sparse_coo")
    check(one, [ROWS, ROWS.to("meta")], "batch 1: input 'input' is a tensor on the device `meta`")
    check(one, [torch.nested.nested_tensor([ROWS], layout=torch.jagged)], "batch 0: .*nested tensor")


def test_wrong_shape_dtype_and_name_say_what_was_expected(one: CapturedModel, two: CapturedModel) -> None:
    check(one, [ROWS, torch.zeros(4, 5)], r"batch 1: input 'input' has shape \(4, 5\); input: float32\[4, 3\]")
    check(one, [ROWS[0]], r"batch 0: input 'input' has shape \(3,\)")
    check(one, [torch.zeros(4, 3, dtype=torch.int64)], "batch 0: input 'input' has dtype int64; float32 is expected")
    check(one, [{"inputs": ROWS}], "batch 0: .*'input'.*inputs")
    check(one, [np.array([["a", "b", "c"]])], "batch 0: input 'input' is an array of <U1; float32 is expected")
    check(one, ["text"], "batch 0: .*str")
    check(two, [{"image": torch.zeros(2, 3, 3)}], "'mask'")
    uneven = {"image": torch.zeros(2, 3, 3), "mask": torch.zeros(3, 2, dtype=torch.int64)}
    check(two, [uneven], "differ in their number of samples: image 2, mask 3")
    check(one, [ROWS[:0]], "batch 0: input 'input' is empty")


def test_a_fault_in_the_users_loader_is_told_with_its_batch(one: CapturedModel) -> None:
    def broken() -> Iterator[Tensor]:
        yield ROWS
        raise OSError("disk on fire")

    with pytest.raises(CalibrationError, match="failed at batch 1: OSError: disk on fire") as caught:
        stream(one, broken())
    assert isinstance(caught.value.__cause__, OSError)


def test_an_interrupt_passes_through(one: CapturedModel) -> None:
    def interrupted() -> Iterator[Tensor]:
        yield ROWS
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream(one, interrupted())


def test_what_is_no_data_is_a_usage_error(one: CapturedModel, tmp_path: Path) -> None:
    for wrong in (3, tmp_path / "data.csv", "sythetic", lambda: 3):
        with pytest.raises(UsageError):
            stream(one, wrong)


def test_files_that_cannot_be_used_say_why(one: CapturedModel, two: CapturedModel, tmp_path: Path) -> None:
    check(one, tmp_path / "missing.npz", r"missing\.npz: cannot read")
    check(one, tmp_path / "missing.safetensors", r"missing\.safetensors: cannot read")
    check(two, npz(tmp_path), "has the arrays input; the model's inputs are image, mask")
    (tmp_path / "damaged.npz").write_bytes(npz(tmp_path).read_bytes()[:-40])
    check(one, tmp_path / "damaged.npz", r"damaged\.npz: cannot read")
    (tmp_path / "text.safetensors").write_text("no tensors")
    check(one, tmp_path / "text.safetensors", r"text\.safetensors: cannot read")
    np.savez(tmp_path / "objects.npz", input=np.array([{}], dtype=object))
    check(one, tmp_path / "objects.npz", "holds Python objects")
    np.savez(tmp_path / "number.npz", input=np.float32(1))
    check(one, tmp_path / "number.npz", "axis 0 must count samples")
    np.savez(tmp_path / "uneven.npz", image=np.zeros((4, 3, 3), np.float32), mask=np.zeros((3, 2), np.int64))
    check(two, tmp_path / "uneven.npz", "differ in their number of samples")
    np.savez(tmp_path / "none.npz", input=np.zeros((0, 3), np.float32))
    check(one, tmp_path / "none.npz", "is empty")


def test_the_only_array_serves_the_only_input(one: CapturedModel, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", anything=ROWS.numpy())
    np.save(tmp_path / "rows.npy", ROWS.numpy())
    np.save(tmp_path / "double.npy", ROWS.numpy().astype(np.float64))
    for name in ("other.npz", "rows.npy", "double.npy"):
        torch.testing.assert_close(rows_of(stream(one, tmp_path / name)), ROWS, rtol=0, atol=0)


def test_npy_files_that_cannot_be_used_say_why(one: CapturedModel, two: CapturedModel, tmp_path: Path) -> None:
    check(one, tmp_path / "missing.npy", r"missing\.npy: cannot read")
    (tmp_path / "text.npy").write_text("no array")
    check(one, tmp_path / "text.npy", r"text\.npy: cannot read")
    np.save(tmp_path / "number.npy", np.float32(1))
    check(one, tmp_path / "number.npy", "axis 0 must count samples")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    check(one, tmp_path / "objects.npy", r"objects\.npy: cannot read")
    np.save(tmp_path / "rows.npy", ROWS.numpy())
    (tmp_path / "cut.npy").write_bytes((tmp_path / "rows.npy").read_bytes()[:-4])
    check(one, tmp_path / "cut.npy", r"cut\.npy: cannot read")
    check(two, tmp_path / "rows.npy", "the model's inputs are image, mask")


def test_a_file_is_read_in_pieces(dynamic: CapturedModel, tmp_path: Path) -> None:
    rows = torch.arange(300.0).reshape(100, 3)
    np.savez(tmp_path / "big.npz", input=rows.numpy())
    batches = stream(dynamic, tmp_path / "big.npz")
    torch.testing.assert_close(rows_of(batches), rows, rtol=0, atol=0)
    assert batches[-1].last == 3  # pieces of 32 rows
