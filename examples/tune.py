"""From a gate that a plain int8 export misses to the best model that passes it, on real data.

    python examples/tune.py [--output FOLDER] [--min-sqnr-db 40] [--epochs 4]

A small CNN learns scikit-learn's digits; then int8 must stay within half a point of its accuracy and 40 dB of its
outputs. The search tells every step; its recipe is a file, and an export that follows the file is the same to the byte.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import deploykit

HELD_OUT = 597


def data() -> tuple[Tensor, Tensor]:
    """1797 grey images of 8 x 8 and their labels, in a seeded order; the last 597 are for evaluation alone."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = torch.from_numpy(digits.images[order] / 16.0).float()[:, None]
    return images, torch.from_numpy(digits.target[order])


def network() -> nn.Sequential:
    """Depthwise and pointwise convolutions, as mobile networks have them."""
    layers: list[nn.Module] = []
    for inside, outside in ((1, 16), (16, 32), (32, 48)):
        layers += [nn.Conv2d(inside, inside, 3, padding=1, groups=inside), nn.BatchNorm2d(inside)]
        layers += [nn.Conv2d(inside, outside, 1), nn.BatchNorm2d(outside), nn.Hardswish()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(192, 10))


def fit(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Adam over the training images."""
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    model.eval()


def main() -> None:
    """Train, search, write the recipe, and export from it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out"))
    parser.add_argument("--min-sqnr-db", type=float, default=40.0)
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the network is so small that threads would wait for each other
    images, labels = data()
    model = network()
    fit(model, images[:-HELD_OUT], labels[:-HELD_OUT], arguments.epochs)

    def right(session: deploykit.Session) -> np.ndarray:
        """Whether each held-out image is classified rightly: a score per sample, so that the drop has an interval."""
        feeds = {session.inputs[0].name: images[-HELD_OUT:].numpy()}
        chosen = session.run(feeds)[session.outputs[0].name].argmax(1)
        found: np.ndarray = np.equal(chosen, labels[-HELD_OUT:].numpy())
        return found

    shared = {"example_inputs": (images[:1],), "dynamic_batch": True, "calibration": images[:64].split(8)}
    gate = deploykit.Tolerance(min_sqnr_db=arguments.min_sqnr_db)
    plan = deploykit.tune(
        model, "x86-cpu", "int8", evaluate=right, max_drop=0.005, tolerance=gate,
        output=arguments.output / "tuned", profile=False, **shared,
    )  # fmt: skip
    for step in plan.ladder:
        figures = "" if step.sqnr_db is None else f"{step.sqnr_db:.1f} dB, metric {step.metric:.4f}"
        print(f"{step.step:40} {step.outcome:12} {figures} {step.reason}")
    last = plan.ladder[-1]
    print(f"drop {last.drop:.4f}, with 95 % confidence {last.drop_low:.4f} to {last.drop_high:.4f}")
    print(f"{last.int8_share:.0%} of the multiply-accumulates in int8; {len(plan.recipe.kept)} layers kept in float")

    recipe = arguments.output / "digits.toml"
    plan.recipe.write(recipe)
    again = deploykit.export(
        model, recipe=recipe, evaluate=right, max_drop=0.005, tolerance=gate,
        output=arguments.output / "again", profile=False, **shared,
    )  # fmt: skip
    same = all((plan.best.path / path.name).read_bytes() == path.read_bytes() for path in again.path.iterdir())
    print(f"the recipe {recipe} makes {'the same bytes' if same else 'other bytes'} again")


if __name__ == "__main__":
    main()
