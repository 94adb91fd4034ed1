"""int8 through NVIDIA's compiler: what it makes of our files, of ONNX Runtime's and of nvidia-modelopt's.

    python -m venv modelopt && modelopt/bin/pip install torch "nvidia-modelopt[onnx]"
    python benchmarks/tensorrt_compiled.py [--modelopt modelopt/bin/python] [--arch sm_86] [--models resnet18 vit ...]
    python benchmarks/tensorrt_compiled.py --ours --precisions int8 fp16 --arch sm_86 sm_89 sm_120

Counts by TensorRT for RTX's own listing of engine layers; no GPU takes part, and nothing here says how fast a file is.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import models
import onnx
import peers
import torch
from harness import quiet, report, scratch
from tensorrt_peers import modelopt, symmetric
from torch import Tensor, nn

from deploykit import pipeline
from deploykit.contract.achieved import Achieved
from deploykit_targets._onnx.explicit import lower_explicit
from deploykit_targets._onnx.lint import load_rules
from deploykit_targets._tensorrt.compiled import counted, wanted_of
from deploykit_targets._tensorrt.compiler import Compiled, compile_onnx

OPSET = 19
Made = tuple[nn.Module, list[tuple[Tensor, ...]]]


class Hidden(nn.Module):
    """A text model's last hidden state alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        found: Tensor = self.model(input_ids=input_ids).last_hidden_state
        return found


class Recurrent(nn.Module):
    """Two LSTM layers and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(64, 128, num_layers=2, batch_first=True)
        self.head = nn.Linear(128, 32)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.lstm(x)[0][:, -1])
        return found


class UNet(nn.Module):
    """Two levels down and up with skip connections."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = _double(3, 32), _double(32, 64), _double(64, 128)
        self.up_two, self.up_one = nn.ConvTranspose2d(128, 64, 2, 2), nn.ConvTranspose2d(64, 32, 2, 2)
        self.four, self.five, self.head = _double(128, 64), _double(64, 32), nn.Conv2d(32, 16, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        two = self.two(self.pool(one))
        up = self.four(torch.cat([self.up_two(self.three(self.pool(two))), two], 1))
        found: Tensor = self.head(self.five(torch.cat([self.up_one(up), one], 1)))
        return found


def _double(channels_in: int, channels: int) -> nn.Module:
    first, second = models.conv_norm(channels_in, channels, 3), models.conv_norm(channels, channels, 3)
    return nn.Sequential(*first, nn.ReLU(), *second, nn.ReLU())


def _images(name: str) -> Made:
    model, _ = getattr(models, name)()
    return model, [(models.images(1, seed=seed),) for seed in range(8)]


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return make().eval().requires_grad_(False)


def _text(make: Callable[[], nn.Module], vocabulary: int) -> Made:
    drawn = [torch.randint(0, vocabulary, (1, 64), generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    return Hidden(_seeded(make)), [(ids,) for ids in drawn]


def _floats(make: Callable[[], nn.Module], *shape: int) -> Made:
    drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    return _seeded(make), [(x,) for x in drawn]


def bert() -> Made:
    from transformers import BertConfig, BertModel

    sizes = {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
    return _text(lambda: BertModel(BertConfig(vocab_size=1000, **sizes), add_pooling_layer=False), 1000)


def llama() -> Made:
    from transformers import LlamaConfig, LlamaModel

    sizes = {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 688}
    return _text(lambda: LlamaModel(LlamaConfig(vocab_size=1000, use_cache=False, **sizes)), 1000)


def vit() -> Made:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"num_hidden_layers": 4, "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
    made = _floats(lambda: ViTForImageClassification(ViTConfig(num_labels=100, **sizes)), 1, 3, 224, 224)
    return models.ImageLogits(made[0]), made[1]


def efficientnet() -> Made:
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    b0 = EfficientNetConfig(image_size=224, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280)
    made = _floats(lambda: EfficientNetForImageClassification(b0), 1, 3, 224, 224)
    # its own pool has a window of 1280 x 1280, which the compiler refuses in the peers' files
    made[0].efficientnet.pooler = nn.AdaptiveAvgPool2d(1)
    return models.ImageLogits(made[0]), made[1]


NETWORKS: dict[str, Callable[[], Made]] = {
    "resnet18": lambda: _images("resnet18"),
    "resnet50": lambda: _images("resnet50"),
    "mobilenet_v2": lambda: _images("mobilenet_v2"),
    "efficientnet": efficientnet,
    "vit": vit,
    "bert": bert,
    "llama": llama,
    "unet": lambda: _floats(UNet, 1, 3, 128, 128),
    "lstm": lambda: _floats(Recurrent, 1, 24, 64),
}


def ours(made: Made, folder: Path, precision: str, target: str = "jetson-orin") -> tuple[Path, Achieved]:
    """The file of an export, and what it asks for; its outputs are not computed here."""
    model, samples = made
    request = pipeline.request(target, precision)
    with quiet():
        captured = pipeline.capture(model, example_inputs=samples[0])
        run = pipeline.calibrate(captured, samples, progress=False) if request.precision.is_static else None
        prepared = pipeline.prepare(request, captured, run)
        made_of_it = lower_explicit(prepared, load_rules("tensorrt"), opset=OPSET)
    path = folder / f"ours-{precision}.onnx"
    onnx.save(made_of_it.model, path)
    return path, made_of_it.achieved


def counts(found: Compiled) -> dict[str, Any]:
    """What the table has of one engine."""
    multiply = [layer for layer in found.layers if layer.role == "multiplies"]
    return {
        "engine layers": len(found.layers),
        "products in Int8": sum(layer.precision == "int8" for layer in multiply),
        "products": len(multiply),
        "chains": sum(layer.is_chain and not layer.is_reformat for layer in found.layers),
        "reformats": sum(layer.is_reformat for layer in found.layers),
        "MB moved": round(sum(layer.moved_bytes for layer in found.layers) / 1e6, 2),
    }


def row(model: str, what: str, path: Path, arch: str, planned: Achieved | None = None) -> dict[str, Any]:
    """One file through the compiler; of ours also the share of MACs in the type that most are asked in."""
    start = time.perf_counter()
    found = compile_onnx(path, arch)
    seconds = round(time.perf_counter() - start, 2)
    share = None if planned is None else round(counted(planned, found).macs_fraction(wanted_of(planned)), 4)
    return {"model": model, "what": what, "arch": arch, **counts(found), "MACs as asked": share, "compile s": seconds}


def run_model(
    name: str, python: str | None, archs: Sequence[str], folder: Path, *, precisions: Sequence[str], peers_too: bool
) -> list[dict[str, Any]]:
    """Every file of one network, for every architecture."""
    made = NETWORKS[name]()
    files: dict[str, Callable[[], tuple[Path, Achieved | None]]] = {}
    for precision in precisions:
        files[f"deploykit {precision}"] = lambda precision=precision: ours(made, folder, precision)  # type: ignore[misc]
    if peers_too:
        files |= _of_peers(made, python, folder)
    rows = []
    for what, make in files.items():
        try:
            path, planned = make()
            rows += [row(name, what, path, arch, planned) for arch in archs]
        except Exception as error:  # a peer that fails is a result
            rows.append(
                {"model": name, "what": f"{what}: {type(error).__name__}: {error}"[:200].replace("|", ";"), "arch": "-"}
            )
        print(rows[-1], flush=True)
    return rows


def _of_peers(made: Made, python: str | None, folder: Path) -> dict[str, Callable[[], tuple[Path, Achieved | None]]]:
    """Files of ONNX Runtime's quantizer, and of modelopt where its Python is given."""
    model, samples = made
    files: dict[str, Callable[[], tuple[Path, Achieved | None]]] = {}
    names = ["input_ids"] if samples[0][0].dtype == torch.int64 else ["x"]
    feeds = [dict(zip(names, (tensor.numpy() for tensor in sample), strict=True)) for sample in samples]
    source = peers.torch_onnx(model, samples[0], names, folder / "float.onnx")
    files["ORT quantize_static int8 symmetric"] = lambda: (symmetric(source, folder / "ort.onnx", feeds), None)
    if python:
        for rest in ("fp32", "fp16"):
            files[f"modelopt max, {rest} rest"] = lambda rest=rest: (  # type: ignore[misc]
                modelopt(python, source, folder, feeds, "max", rest),
                None,
            )
    return files


def main() -> None:
    """All networks; a table and `results/tensorrt_compiled.json`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=sorted(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--arch", nargs="+", default=["sm_86"])
    parser.add_argument("--precisions", nargs="+", default=["int8"])
    parser.add_argument("--ours", action="store_true", help="leave the peers' files out, and print alone")
    parser.add_argument("--modelopt", help="Python that has nvidia-modelopt; left out, modelopt is not compared")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.models:
        with scratch() as folder:
            own = {"precisions": arguments.precisions, "peers_too": not arguments.ours}
            rows += run_model(name, arguments.modelopt, arguments.arch, folder, **own)
    if arguments.ours:
        return
    notes = [
        "counted in the listing of engine layers that TensorRT for RTX 1.7 logs on a CPU; nothing was run on a GPU",
        "MB moved: activations that engine layers read and write, caches left out; MACs by the layers of our capture",
    ]
    if not arguments.modelopt:
        notes.append("modelopt was not compared: pass --modelopt PYTHON")
    report("tensorrt_compiled", rows, notes=notes)


if __name__ == "__main__":
    main()
