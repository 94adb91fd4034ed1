"""The calibration pass against plain interpretation of the same graph, and everything around the pass."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from deploykit.capture import CapturedModel, capture
from deploykit.contract.errors import CalibrationError
from deploykit.testing import models
from deploykit_calibration import engine, observe
from deploykit_calibration.batching import Batch
from deploykit_calibration.data import open_data
from deploykit_calibration.engine import Engine, suits_bfloat16
from deploykit_calibration.execution import Executor, floating_nodes
from deploykit_calibration.observe import CalibrationRun, calibrate, first_samples, run_calibration
from deploykit_calibration.op_kinds import kind_of
from deploykit_calibration.table import CalibrationTable

ZOO = [
    models.residual_cnn,
    models.mobilenet_like,
    models.squeeze_excite_cnn,
    models.unet_like,
    models.lstm_classifier,
    models.transformer_encoder,
    models.two_inputs_dict_output,
]


@pytest.fixture
def float32_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "native_bfloat16", lambda: False)


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "native_bfloat16", lambda: True)


@pytest.fixture(scope="module")
def cnn() -> CapturedModel:
    """Static, batch of 1."""
    module, example = models.residual_cnn()
    return capture(module, example_inputs=example)


@pytest.fixture(scope="module")
def dynamic_cnn() -> CapturedModel:
    module, example = models.residual_cnn()
    return capture(module, example_inputs=example, dynamic_batch=True)


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


class Recorder(fx.Interpreter):
    """Every floating value of a plain interpretation."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, list[np.ndarray]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op in ("placeholder", "call_function") and isinstance(value, Tensor) and value.is_floating_point():
            self.values.setdefault(n.name, []).append(value.detach().numpy().copy().ravel())
        return value


def reference(captured: CapturedModel, batches: list[Any]) -> dict[str, np.ndarray]:
    recorder = Recorder(captured.graph_module)
    with torch.no_grad():
        for batch in batches:
            recorder.run(*captured.feeds(batch).values())
    return {name: np.concatenate(values) for name, values in recorder.values.items()}


@pytest.mark.usefixtures("float32_only")
@pytest.mark.parametrize("make", ZOO, ids=lambda make: make.__name__)
def test_statistics_are_those_of_a_plain_interpretation(make: Any) -> None:
    module, example = make()
    captured = capture(module, example_inputs=example)
    batches = [sample.feeds for sample in open_data(captured, "synthetic", limit=3).stream(captured)]
    table = run_calibration(captured, batches, progress=False).table
    expected = reference(captured, batches)
    assert set(table.statistics) == set(expected) == {n.name for n in floating_nodes(captured.graph_module)}
    for name, values in expected.items():
        found = table.statistics[name]
        # Channels-last and another order of additions: float32 rounding, relative to the tensor.
        tolerance = 1e-5 * np.abs(values).max()
        np.testing.assert_allclose([found.minimum, found.maximum], [values.min(), values.max()], atol=tolerance)
        assert found.count == values.size
        assert found.batches == 3


@pytest.mark.usefixtures("float32_only")
@pytest.mark.parametrize("make", ZOO, ids=lambda make: make.__name__)
def test_means_of_layer_inputs_are_those_of_a_plain_interpretation(make: Any) -> None:
    module, example = make()
    captured = capture(module, example_inputs=example)
    batches = [sample.feeds for sample in open_data(captured, "synthetic", limit=3).stream(captured)]
    table = run_calibration(captured, batches, progress=False).table
    expected = reference(captured, batches)
    nodes = {node.name: node for node in captured.graph_module.graph.nodes}
    with_bias = [n.name for n in nodes.values() if kind_of(n) in ("conv", "linear") and len(n.args) > 2 and n.args[2]]
    assert set(table.layer_inputs) == set(with_bias)
    for name, found in table.layer_inputs.items():
        source = nodes[name].args[0]
        stacked = np.stack(np.split(expected[source.name], 3)).reshape(3, *source.meta["val"].shape)
        axis = 2 if kind_of(nodes[name]) == "conv" else stacked.ndim - 1
        mean = stacked.mean(tuple(i for i in range(stacked.ndim) if i != axis), dtype=np.float64)
        # Other orders of additions in float32, relative to the tensor.
        np.testing.assert_allclose(found.mean, mean, atol=1e-5 * np.abs(stacked).max())
        assert found.count * found.whole.size == stacked.size


@pytest.mark.usefixtures("float32_only")
def test_samples_that_fill_up_a_batch_do_not_count_in_means() -> None:
    captured = capture(nn.Linear(2, 2), example_inputs=(torch.zeros(4, 2),))
    data = torch.cat([torch.zeros(4, 2), torch.ones(1, 2)])
    (sums,) = calibrate(captured, data, progress=False).layer_inputs.values()
    assert (sums.count, sums.mean.tolist()) == (4, [0.0, 0.0])
    (alone,) = calibrate(captured, data[4:], progress=False).layer_inputs.values()
    assert alone.mean.tolist() == [1.0, 1.0]


def dtypes_of_runs(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Filled with the dtype of every batch that is run from now on."""
    dtypes: list[torch.dtype] = []
    run = Executor.run

    def recorded(self: Executor, *args: Any) -> None:
        dtypes.append(self.dtype)
        run(self, *args)

    monkeypatch.setattr(Executor, "run", recorded)
    return dtypes


@pytest.mark.usefixtures("bfloat16")
def test_bfloat16_gives_the_ranges_of_float32(dynamic_cnn: CapturedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes = dtypes_of_runs(monkeypatch)
    data = images(24)
    half = calibrate(dynamic_cnn, data, progress=False)
    assert sorted(dtypes[:2], key=str) == [torch.bfloat16, torch.float32], "the first batch in both"
    assert dtypes[2:] == [torch.bfloat16, torch.bfloat16]
    expected = reference(dynamic_cnn, [data])
    for name, values in expected.items():
        found = half.statistics[name]
        width = max(values.max(), 0) - min(values.min(), 0)
        assert abs(found.minimum - values.min()) <= 0.02 * width  # 2 %: what a few bfloat16 roundings make
        assert abs(found.maximum - values.max()) <= 0.02 * width
        for quantile in ("percentile:99.9", "percentile:99"):
            lo, hi = half.range(name, method=quantile, symmetric=False)
            cut = float(quantile.partition(":")[2])
            want = np.percentile(values, [100 - cut, cut])
            # 5 %: 65 thousand or fewer random values stand for all
            np.testing.assert_allclose([lo, hi], [min(want[0], 0), max(want[1], 0)], atol=0.05 * width)


@pytest.mark.usefixtures("bfloat16")
def test_float32_is_kept_where_bfloat16_changes_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cancels(nn.Module):
        """The difference of two large, nearly equal values, which bfloat16 cannot hold."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x) * 0.001 + 100.0
            return y - 100.0

    dtypes = dtypes_of_runs(monkeypatch)
    captured = capture(Cancels(), example_inputs=(torch.randn(1, 1, 8, 8),))
    calibrate(captured, torch.randn(4, 1, 8, 8), progress=False)
    assert sorted(dtypes[:2], key=str) == [torch.bfloat16, torch.float32], "the first batch in both"
    assert dtypes[2:] == [torch.float32] * 3


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("make", [models.transformer_encoder, models.lstm_classifier, models.mlp])
def test_what_does_not_gain_from_bfloat16_stays_float32(make: Any) -> None:
    module, example = make()
    assert not suits_bfloat16(capture(module, example_inputs=example))


def test_the_pass_is_deterministic_and_seeded(cnn: CapturedModel) -> None:
    class Big(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.square()

    captured = capture(Big(), example_inputs=(torch.zeros(1, 40_000),))
    data = torch.randn(3, 40_000, generator=torch.Generator().manual_seed(0))
    first, again, other = (calibrate(captured, data, progress=False, seed=seed) for seed in (0, 0, 1))
    assert first == again
    name = next(iter(first.statistics))
    assert first.statistics[name].sampled < first.statistics[name].count
    assert (first.statistics[name].histogram != other.statistics[name].histogram).any()
    assert first.statistics[name].maximum == other.statistics[name].maximum


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_result_does_not_depend_on_which_thread_took_which_batch(dynamic_cnn: CapturedModel, threads: int) -> None:
    data, before = images(40), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        table = calibrate(dynamic_cnn, data, progress=False)
        assert torch.get_num_threads() == threads
        assert table == calibrate(dynamic_cnn, data, progress=False)
    finally:
        torch.set_num_threads(before)
    assert all(s.batches == 5 for s in table.statistics.values())


def test_of_several_faulty_batches_the_first_is_told() -> None:
    module = Overflows()
    nn.init.ones_(module.inner.weight)
    captured = capture(module, example_inputs=(torch.zeros(1, 3),))
    data = [torch.zeros(1, 3)] * 3 + [torch.full((1, 3), 1e4)] * 6
    with pytest.raises(CalibrationError, match="calibration batch 3: 'exp'"):
        calibrate(captured, data, progress=False)


def test_views_share_statistics_and_relu_is_derived_exactly(cnn: CapturedModel) -> None:
    table = calibrate(cnn, images(2), progress=False)
    statistics = table.statistics
    for node in cnn.graph_module.graph.nodes:
        if str(node.target) == "aten.reshape.default":
            assert statistics[node.name] is statistics[node.args[0].name]
        if str(node.target) == "aten.relu.default":
            assert statistics[node.name].minimum == 0.0
            assert statistics[node.name].maximum == statistics[node.args[0].name].maximum
            assert statistics[node.name].zeros > 0


def test_the_table_says_what_it_is_of(cnn: CapturedModel) -> None:
    table = calibrate(cnn, images(5), progress=False)
    assert (table.samples, table.source, table.model_fingerprint) == (5, "data", cnn.fingerprint)
    assert calibrate(cnn, "synthetic", progress=False).source == "synthetic"


def test_shards_merge_to_the_whole(cnn: CapturedModel) -> None:
    data = images(6)
    whole = calibrate(cnn, data, progress=False)
    parts = calibrate(cnn, data[:2], progress=False).merge(calibrate(cnn, data[2:], progress=False))
    extended = calibrate(cnn, data[2:], progress=False, extend=calibrate(cnn, data[:2], progress=False))
    assert parts == extended
    assert parts.samples == whole.samples
    for name, s in whole.statistics.items():
        other = parts.statistics[name]
        width = s.maximum - s.minimum
        assert other.count == s.count
        # The first batch of each pass is float32 and the others may be bfloat16.
        np.testing.assert_allclose([other.minimum, other.maximum], [s.minimum, s.maximum], atol=0.02 * width)


class Overflows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(self.inner(x)).sum(1)


def test_an_activation_that_is_not_finite_names_batch_tensor_and_module(cnn: CapturedModel) -> None:
    module = Overflows()
    nn.init.ones_(module.inner.weight)
    captured = capture(module, example_inputs=(torch.zeros(1, 3),))
    data = [torch.zeros(1, 3), torch.full((1, 3), 100.0)]
    with pytest.raises(CalibrationError, match=r"batch 1: 'exp' holds infinity: aten.exp.default in .*forward"):
        calibrate(captured, data, progress=False)
    broken = nn.Linear(3, 3)
    nn.init.constant_(broken.weight, torch.nan)
    captured = capture(nn.Sequential(nn.ReLU(), nn.Sequential(broken)), example_inputs=(torch.zeros(1, 3),))
    with pytest.raises(CalibrationError, match=r"batch 0: 'linear' holds NaN: aten.linear.default in 1.0") as caught:
        calibrate(captured, data[:1], progress=False)
    assert "the weight '1.0.weight' holds NaN" in str(caught.value.hint)


def test_a_mask_of_infinity_is_no_fault() -> None:
    class Masked(nn.Module):
        mask: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.full((4, 4), -50.0).triu(1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(x + self.mask, -1)

    captured = capture(Masked(), example_inputs=(torch.zeros(1, 4, 4),))
    for constant in captured.graph_module.buffers():  # capture makes masks finite; other graphs may not
        constant.masked_fill_(constant == -50.0, -torch.inf)
    table = calibrate(captured, torch.randn(2, 4, 4), progress=False)
    added = next(s for s in table.statistics.values() if s.nonfinite)
    assert added.nonfinite == 2 * 6
    assert np.isfinite([added.minimum, added.maximum]).all()


def test_samples_come_back_as_feeds(
    cnn: CapturedModel, dynamic_cnn: CapturedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = images(40)
    for captured in (cnn, dynamic_cnn):
        run = run_calibration(captured, data, progress=False)
        assert isinstance(run, CalibrationRun)
        assert len(run.samples) == 32
        torch.testing.assert_close(run.samples[31]["x"], data[31:32], rtol=0, atol=0)
        assert captured.run(run.samples[0])
        assert len(first_samples(captured, data, limit=3)) == 3
    monkeypatch.setattr(observe, "KEPT_BYTES", 5 * data[0].nbytes)
    assert len(run_calibration(dynamic_cnn, data, progress=False).samples) == 5


def test_a_finished_table_is_taken_as_it_is(cnn: CapturedModel, dynamic_cnn: CapturedModel, tmp_path: Path) -> None:
    table = calibrate(cnn, images(2), progress=False)
    path = table.save(tmp_path / "a.calibration")
    odd = table.save(tmp_path / "b.safetensors")
    for data in (table, path, str(path), odd):
        run = run_calibration(cnn, data, progress=False)
        assert run.table == table and run.samples == []
        assert first_samples(cnn, data, limit=2) == []
    for data in (table, path):
        with pytest.raises(CalibrationError, match=f"{cnn.fingerprint[:16]}, not of {dynamic_cnn.fingerprint[:16]}"):
            calibrate(dynamic_cnn, data, progress=False)
    with pytest.raises(CalibrationError, match="not of"):
        calibrate(dynamic_cnn, images(2), progress=False, extend=table)
    with pytest.raises(CalibrationError, match="cannot be read"):
        calibrate(cnn, tmp_path / "missing.calibration")


def count_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    passes: list[int] = []
    run = Engine.run

    def counted(self: Engine, batch: Batch) -> None:
        passes.append(batch.first)
        run(self, batch)

    monkeypatch.setattr(Engine, "run", counted)
    return passes


def test_the_cache_saves_the_pass(cnn: CapturedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = count_passes(monkeypatch)
    data = images(3)
    first = run_calibration(cnn, data, cache_dir=tmp_path, progress=False)
    assert (len(passes), first.table.from_cache) == (3, False)
    again = run_calibration(cnn, [row[None] for row in data], cache_dir=tmp_path, progress=False)
    assert (len(passes), again.table.from_cache) == (3, True)
    assert again.table == first.table
    assert len(again.samples) == 3
    assert not calibrate(cnn, data[:2], cache_dir=tmp_path, progress=False).from_cache
    assert not calibrate(cnn, data, cache_dir=tmp_path, progress=False, seed=1).from_cache
    # A generator cannot be read twice: it is observed, and what it gave is kept for later.
    assert not calibrate(cnn, (row[None] for row in data), cache_dir=tmp_path, progress=False).from_cache


def test_a_cache_that_cannot_be_written_is_told_before_the_pass(cnn: CapturedModel, tmp_path: Path) -> None:
    class Watched:
        read = 0

        def __iter__(self) -> Iterator[Tensor]:
            Watched.read += 1
            yield images(1)

    (tmp_path / "file").write_text("no folder")
    for folder in (tmp_path / "file", "a\0b"):
        with pytest.raises(CalibrationError, match=r"cache_dir: '.*(file|a\\x00b)' cannot be written"):
            calibrate(cnn, Watched(), progress=False, cache_dir=folder)
    assert Watched.read == 0


def test_a_damaged_cache_is_ignored_with_a_warning(cnn: CapturedModel, tmp_path: Path) -> None:
    table = calibrate(cnn, images(2), cache_dir=tmp_path, progress=False)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="ignoring the cached calibration.*damaged"):
        again = calibrate(cnn, images(2), cache_dir=tmp_path, progress=False)
    assert again == table and not again.from_cache
    assert calibrate(cnn, images(2), cache_dir=tmp_path, progress=False).from_cache, "it was written again"


def test_an_interrupt_leaves_nothing_behind(cnn: CapturedModel, tmp_path: Path) -> None:
    def interrupted() -> Iterator[Tensor]:
        yield images(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(cnn, interrupted, cache_dir=tmp_path)
    assert os.listdir(tmp_path) == []


def test_progress_is_shown_on_terminals_only(
    cnn: CapturedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calibrate(cnn, images(1))
    assert capsys.readouterr() == ("", "")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    calibrate(cnn, [images(1), images(1)])
    assert "calibrating" in terminal.getvalue() and "2/2" in terminal.getvalue()


def test_the_model_and_the_data_are_left_as_they_were(cnn: CapturedModel) -> None:
    data = images(2)
    before, weights = data.clone(), {k: v.clone() for k, v in cnn.graph_module.state_dict().items()}
    code = cnn.graph_module.code
    calibrate(cnn, data, progress=False)
    assert torch.equal(data, before)
    assert cnn.graph_module.code == code
    assert all(torch.equal(v, weights[k]) for k, v in cnn.graph_module.state_dict().items())


def test_a_saved_table_reads_back(cnn: CapturedModel, tmp_path: Path) -> None:
    table = calibrate(cnn, images(2), progress=False)
    assert CalibrationTable.load(table.save(tmp_path / "t")) == table
