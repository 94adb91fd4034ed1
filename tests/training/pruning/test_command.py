"""`deploykit prune` writes weights and a report that a model of the same factory takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from deploykit.cli import app
from deploykit_training.pruning import replay

MODEL = """
import torch
from torch import nn

def factory():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    return nn.Sequential(*layers).eval(), (torch.randn(1, 1, 8, 8),)
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    (tmp_path / "net_to_prune.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def call(*arguments: str) -> tuple[int, Any]:
        code = app.run(["prune", "net_to_prune:factory", *arguments, "--json"])
        return code, json.loads(capsys.readouterr().out)

    return call


def fresh() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    import net_to_prune  # type: ignore[import-not-found]

    made: tuple[nn.Module, tuple[torch.Tensor, ...]] = net_to_prune.factory()
    return made


def test_channels_that_went_are_removed_from_a_fresh_model(run: Callable[..., Any]) -> None:
    pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")
    code, found = run("--round-to", "1", "-o", "out")
    assert code == 0 and found["parameters_after"] < found["parameters_before"]
    report = json.loads(Path("out/report.json").read_text())
    assert report["removed"] == found["removed"] and report["kind"] == "structured"
    model, example = fresh()
    replay(model, example, report["removed"])
    model.load_state_dict(load_file("out/weights.safetensors"))
    assert sum(parameter.numel() for parameter in model.parameters()) == found["parameters_after"]


def test_zeros_are_in_the_weights_and_a_folder_is_not_overwritten(run: Callable[..., Any]) -> None:
    code, found = run("--kind", "2:4", "-o", "out")
    assert code == 0 and found["sparsity"] > 0.3
    model, _ = fresh()
    model.load_state_dict(load_file("out/weights.safetensors"))
    assert int((model[5].weight == 0).sum()) >= model[5].weight.numel() // 2  # type: ignore[index]
    code, error = run("--kind", "2:4", "-o", "out")
    assert code == 2 and "there already" in error["error"]["message"]


def test_a_write_that_is_interrupted_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from deploykit.cli.commands import prune

    def interrupted(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(prune.json_format, "dumps", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prune._write(tmp_path / "pruned", nn.Linear(2, 2), {})
    assert not any(tmp_path.iterdir())
