"""Train `models/digits`: a small feed-forward classifier of handwritten digits.

The images (1,797 of 8x8 pixels, grey levels 0 to 16; UCI, CC BY 4.0) come with scikit-learn. A fifth of each class is held out and tested once.

    python -m training.digits --out models/digits --csv examples/data/digits.csv
"""

import argparse
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from training.card import Card, Table, write_card, write_manifest, write_weights

SIDE, CLASSES = 8, 10
PIXEL_MEAN, PIXEL_SCALE = 8.0, 8.0  # grey levels 0..16 to -1..1
SHOWN_PER_CLASS = 2
SPLIT_SEED = 0


@dataclass(frozen=True)
class Recipe:
    """How to train: before each pass images are warped by random affine maps of spread `warp` (of half an image) and get noise (in normalized units)."""

    hidden_sizes: tuple[int, ...] = (256, 128)
    epochs: int = 150
    rows: int = 64
    rate: float = 3e-3
    weight_decay: float = 0.02
    dropout: float = 0.2
    warp: float = 0.1
    noise: float = 0.1
    label_smoothing: float = 0.05
    seed: int = 0


class Images(NamedTuple):
    """Images float32 [N, 64] in grey levels and their classes int64 [N]."""

    pixels: Tensor
    labels: Tensor


class Classifier(nn.Module):
    """The served network in `torch.nn`: normalize, hidden layers with ReLU, linear head (logits: the server applies the softmax)."""

    def __init__(self, hidden_sizes: tuple[int, ...], dropout: float = 0.0) -> None:
        super().__init__()
        widths = (SIDE * SIDE, *hidden_sizes)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.head = nn.Linear(widths[-1], CLASSES)
        self.dropout = nn.Dropout(dropout)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map grey levels [B, 64] to logits [B, 10]."""
        hidden = (pixels - PIXEL_MEAN) / PIXEL_SCALE
        for layer in self.layers:
            hidden = self.dropout(torch.relu(layer(hidden)))
        return torch.as_tensor(self.head(hidden))


def read_images() -> tuple[Images, Images]:
    """Return training and test images: a stratified fifth is the test, drawn with a fixed seed."""
    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(pixels, labels, test_size=0.2, stratify=labels, random_state=SPLIT_SEED)
    return tuple(Images(torch.tensor(p, dtype=torch.float32), torch.tensor(c)) for p, c in (parts[::2], parts[1::2]))  # type: ignore[return-value]


def folds(images: Images, count: int = 5) -> list[tuple[Images, Images]]:
    """Cut images into `count` pairs of (training, validation), each image validated once."""
    parts = torch.arange(len(images.labels)) % count
    return [(Images(*(t[parts != k] for t in images)), Images(*(t[parts == k] for t in images))) for k in range(count)]


def disturb(pixels: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Shift, shear, turn and stretch each image [B, 64] a little at random (blank pixels come in) and add noise."""
    images = pixels.view(-1, 1, SIDE, SIDE)
    maps = torch.eye(2, 3) + recipe.warp * torch.randn(len(pixels), 2, 3, generator=generator)
    warped = nn.functional.grid_sample(images, nn.functional.affine_grid(maps, list(images.shape), align_corners=False), align_corners=False)
    return warped.flatten(1) + recipe.noise * PIXEL_SCALE * torch.randn(pixels.shape, generator=generator)


def train(images: Images, recipe: Recipe, label: str) -> Classifier:
    """Train with AdamW and a cosine; return the exponential average of the weights."""
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    model = Classifier(recipe.hidden_sizes, recipe.dropout)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995))
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay)
    total = recipe.epochs * math.ceil(len(images.labels) / recipe.rows)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    for _ in track(range(recipe.epochs), description=label):
        for rows in torch.randperm(len(images.labels), generator=generator).split(recipe.rows):
            logits = model(disturb(images.pixels[rows], recipe, generator))
            loss = nn.functional.cross_entropy(logits, images.labels[rows], label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            average.update_parameters(model)
    trained: Classifier = average.module.eval()
    return trained


@torch.no_grad()
def score(model: Classifier, images: Images) -> dict[str, float]:
    """Share of images whose likeliest class is right, and mean negative log-likelihood in nats."""
    logits = model.eval()(images.pixels)
    return {
        "accuracy": float((logits.argmax(1) == images.labels).double().mean()),
        "log_loss": float(nn.functional.cross_entropy(logits, images.labels)),
    }


def validate(images: Images, recipe: Recipe) -> dict[str, float]:
    """Mean scores of five-fold cross-validation within the training images."""
    scores = [score(train(training, recipe, f"fold {k + 1}"), validation) for k, (training, validation) in enumerate(folds(images))]
    return {name: sum(s[name] for s in scores) / len(scores) for name in scores[0]}


def manifest(recipe: Recipe) -> dict[str, object]:
    """Describe the model folder as `model.yaml` does."""
    features = SIDE * SIDE
    return {
        "format": 1,
        "name": "digits",
        "description": "Feed-forward classifier of handwritten digits, 8x8 grey levels from 0 to 16.",
        "kind": "feed_forward",
        "hidden_sizes": list(recipe.hidden_sizes),
        "activation": "relu",
        "input": {"kind": "numeric", "features": features, "normalization": {"mean": [PIXEL_MEAN] * features, "scale": [PIXEL_SCALE] * features}},
        "output": {"kind": "numeric", "features": CLASSES, "activation": "softmax", "labels": [str(digit) for digit in range(CLASSES)]},
        "modes": ["one_to_one"],
        "dtype": "float32",
    }


def card(scores: dict[str, dict[str, float]], recipe: Recipe, counts: tuple[int, int]) -> Card:
    """State the facts of the model."""
    rows = [
        ("5-fold cross-validation within the training images", *(f"{scores['cross_validation'][k]:.4f}" for k in ("accuracy", "log_loss"))),
        (f"**test, {counts[1]} images**", *(f"{scores['test'][k]:.4f}" for k in ("accuracy", "log_loss"))),
    ]
    widths = " and ".join(map(str, recipe.hidden_sizes))
    return Card(
        title="digits: handwritten digits, classified by a feed-forward network",
        summary="Takes one image of 8x8 grey levels (64 numbers from 0 to 16, row by row) and gives the probability of each digit. It has no state: one "
        "value in, one out.",
        data="The 1,797 images that scikit-learn ships as `sklearn.datasets.load_digits`: the test part of *Optical Recognition of Handwritten Digits* by "
        "E. Alpaydin "
        "and C. Kaynak (UCI Machine Learning Repository, 1998, doi:10.24432/C50P49). `examples/data/digits.csv` holds twenty of the held-out ones.",
        licence="Creative Commons Attribution 4.0 International (CC BY 4.0).",
        split=f"Stratified by class at random with seed {SPLIT_SEED}: {counts[0]} images train, {counts[1]} test and were looked at once, for the score "
        "below. Choices were made by "
        "five-fold cross-validation within the training images.",
        training=f"Hidden layers of {widths} with ReLU, softmax over ten classes. {recipe.epochs} epochs of AdamW with images warped a little at random "
        "(shift, shear, turn, stretch), noise on the "
        f"pixels, dropout {recipe.dropout} and label smoothing {recipe.label_smoothing}; an exponential average of the weights is kept. Seed {recipe.seed}.",
        scores=Table(("", "accuracy", "log loss (nats)"), rows),
        scores_note="Cross-validation, on four times as many images, is the steadier estimate of the two. The held-out images come from the writers who "
        "also wrote the training images, so the test says little about a new writer's hand.",
        command="python -m training.digits --out models/digits --csv examples/data/digits.csv",
        reproducibility=f"About two minutes on one core. Equal weights need the same torch build and kind of processor; torch {torch.__version__} with 1 "
        "thread gave these.",
        use="Demonstration and tests of one-to-one calls.",
        limits="It knows centred digits in this format only, and calls anything else a digit too. Its probabilities are softened by label smoothing.",
    )


def write_csv(path: Path, images: Images) -> None:
    """Write the first two held-out images of each digit as `label,pixel_0,...,pixel_63`."""
    rows = [row for digit in range(CLASSES) for row in torch.nonzero(images.labels == digit)[:SHOWN_PER_CLASS, 0].tolist()]
    lines = [",".join(["label", *(f"pixel_{i}" for i in range(SIDE * SIDE))])]
    lines += [",".join(f"{value:g}" for value in (images.labels[row].item(), *images.pixels[row].tolist())) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Cross-validate, train on all training images, score the test once, write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--csv", type=Path, help="also write twenty held-out images there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    recipe, (training, test) = Recipe(), read_images()
    validation = validate(training, recipe)
    model = train(training, recipe, "all")
    scores = {"cross_validation": validation, "test": score(model, test)}
    Console().print(scores)
    write_weights(arguments.out, model.state_dict())
    write_manifest(arguments.out, manifest(recipe))
    write_card(arguments.out, card(scores, recipe, (len(training.labels), len(test.labels))), scores)
    if arguments.csv:
        write_csv(arguments.csv, test)


if __name__ == "__main__":
    main()
