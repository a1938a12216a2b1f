"""What every training script writes beside its weights: `model.yaml`, `scores.json` and the model's card, `README.md`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True)
class Table:
    """A table of scores: a heading per column and one row of cells per line."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Render as a GitHub table; every column but the first is aligned to the right."""
        rule = ["---"] + ["---:"] * (len(self.columns) - 1)
        return "\n".join("| " + " | ".join(cells) + " |" for cells in (self.columns, rule, *self.rows))


@dataclass(frozen=True)
class Card:
    """The facts a model's card states; each is one or more sentences of Markdown.

    Attributes:
        title: the heading.
        summary: what the model does, in a sentence or two.
        data: what it was trained on and where that comes from.
        licence: the terms of the data.
        split: what trained, what validated and what tested.
        training: architecture and method, in short.
        scores: the held-out scores.
        scores_note: how the scores were measured and how to read them.
        command: the shell command that reproduces the folder.
        reproducibility: what has to be equal for equal weights.
        use: what the model is meant for.
        limits: what it is not good at.
        sample: output of the model to show, or None.
    """

    title: str
    summary: str
    data: str
    licence: str
    split: str
    training: str
    scores: Table
    scores_note: str
    command: str
    reproducibility: str
    use: str
    limits: str
    sample: str | None = None

    def markdown(self) -> str:
        """Render the whole card."""
        sections = [
            ("Data", self.data),
            ("Licence", self.licence),
            ("Split", self.split),
            ("Model and training", self.training),
            ("Scores", f"{self.scores.markdown()}\n\n{self.scores_note}\n\nThe same figures, unrounded, are in `scores.json`."),
            ("Reproduce", f"```console\n$ {self.command}\n```\n\n{self.reproducibility}"),
            ("Intended use", self.use),
            ("Limits", self.limits),
        ]
        if self.sample is not None:
            sections.insert(5, ("Sample", f"```text\n{self.sample.strip()}\n```"))
        body = "\n\n".join(f"## {heading}\n\n{text}" for heading, text in sections)
        return f"# {self.title}\n\n{self.summary}\n\n{body}\n"


class _ManifestDumper(yaml.SafeDumper):
    """Writes strings that hold a line break in double quotes, as escapes."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\n" in text else None)


_ManifestDumper.add_representer(str, _represent_text)


def write_card(folder: Path, card: Card, scores: Mapping[str, Any]) -> None:
    """Write `README.md` and `scores.json` into the model's folder."""
    (folder / "README.md").write_text(card.markdown(), encoding="utf-8")
    (folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write `model.yaml`, keys in the order given, inner mappings on one line."""
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.dump(dict(manifest), Dumper=_ManifestDumper, sort_keys=False, default_flow_style=None, width=160, allow_unicode=True)
    (folder / "model.yaml").write_text(text, encoding="utf-8")


def write_weights(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write `weights.safetensors`, readable by all; names and float type are those of the tensors given."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "weights.safetensors"
    save_file({name: tensor.detach().contiguous() for name, tensor in weights.items()}, path, metadata={"format": "pt"})
    path.chmod(0o644)
