"""Train `models/shakespeare`: a character-level LSTM language model on Tiny Shakespeare.

The text (1,115,394 characters, 65 distinct, public domain; assembled by A. Karpathy for char-rnn) is not part of the repository: give its path. The first 90 %
train, the last 10 % validate, as in the nanoGPT repository. The run can be interrupted and resumed: it checkpoints every epoch.

    python -m training.shakespeare --text tinyshakespeare.txt --out models/shakespeare
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor, nn

EMBEDDING, HIDDEN, LAYERS = 128, 512, 2


class CharacterModel(nn.Module):
    """Embedding -> stacked LSTM -> linear head; parameter names are those of the served model folder."""

    def __init__(self, vocabulary: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, EMBEDDING)
        self.rnn = nn.LSTM(EMBEDDING, HIDDEN, LAYERS, dropout=dropout)
        self.head = nn.Linear(HIDDEN, vocabulary)
        self.dropout = nn.Dropout(dropout)
        self.input_dropout = nn.Dropout(dropout / 4)

    def forward(self, tokens: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Map tokens [T, B] to logits [T, B, V] and the new state."""
        hidden, state = self.rnn(self.input_dropout(self.embedding(tokens)), state)
        return self.head(self.dropout(hidden)), state


def read_text(path: Path) -> tuple[str, Tensor, Tensor]:
    """Return the sorted vocabulary, the training tokens [N] and the validation tokens [M] (90/10, in order)."""
    text = path.read_text(encoding="utf-8")
    vocabulary = "".join(sorted(set(text)))
    index = {character: i for i, character in enumerate(vocabulary)}
    tokens = torch.tensor([index[character] for character in text])
    split = int(0.9 * len(tokens))
    return vocabulary, tokens[:split], tokens[split:]


@torch.no_grad()
def streaming_loss(model: CharacterModel, tokens: Tensor, streams: int = 16, chunk: int = 128) -> float:
    """Mean nats per character over all of `tokens`, read as `streams` contiguous parts with the state carried along."""
    model.eval()
    length = (len(tokens) - 1) // streams
    inputs, targets = (tokens[o : o + streams * length].view(streams, length).t() for o in (0, 1))
    total, state = 0.0, None
    for at in range(0, length, chunk):
        logits, state = model(inputs[at : at + chunk], state)
        total += nn.functional.cross_entropy(logits.flatten(0, 1), targets[at : at + chunk].flatten(), reduction="sum").item()
    return total / (streams * length)


@torch.no_grad()
def block_loss(model: CharacterModel, tokens: Tensor, block: int = 256) -> float:
    """Mean nats per character over blocks of 256 characters, each from an empty state: the evaluation nanoGPT's 1.4697 uses (there on random blocks)."""
    model.eval()
    count = (len(tokens) - 1) // block
    inputs, targets = (tokens[o : o + count * block].view(count, block).t() for o in (0, 1))
    total = 0.0
    for at in range(0, count, 64):
        logits, _ = model(inputs[:, at : at + 64])
        total += nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, at : at + 64].flatten(), reduction="sum").item()
    return total / (count * block)


def batches(tokens: Tensor, rows: int, steps: int, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Cut tokens into chunks ([steps, rows] inputs, targets) that continue each other row by row, from a random offset each epoch."""
    tokens = tokens.roll(-int(torch.randint(len(tokens), (1,), generator=generator)))
    length = (len(tokens) - 1) // rows
    inputs, targets = (tokens[o : o + rows * length].view(rows, length).t() for o in (0, 1))
    return [(inputs[at : at + steps], targets[at : at + steps]) for at in range(0, length, steps)]


def train(arguments: argparse.Namespace) -> None:
    """Train with AdamW (warm-up, cosine), truncated backpropagation with carried state, and an exponential average of the weights, which is what is saved."""
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    vocabulary, training, validation = read_text(arguments.text)
    model = CharacterModel(len(vocabulary), arguments.dropout)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.rate, weight_decay=0.05, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(arguments.seed)
    per_epoch = len(batches(training, arguments.rows, arguments.steps, generator))
    total = per_epoch * arguments.epochs
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1.0, (i + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, i / total)))))
    arguments.out.mkdir(parents=True, exist_ok=True)
    checkpoint, first_epoch = arguments.out / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        for name, part in (("model", model), ("average", average), ("optimizer", optimizer), ("scheduler", scheduler)):
            part.load_state_dict(saved[name])
        first_epoch = saved["epoch"] + 1
        generator.manual_seed(arguments.seed + first_epoch)
    started = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("shakespeare", total=total, completed=first_epoch * per_epoch)
        for epoch in range(first_epoch, arguments.epochs):
            model.train()
            state, losses = None, []
            for inputs, targets in batches(training, arguments.rows, arguments.steps, generator):
                with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bfloat16):
                    logits, state = model(inputs, state)
                state = tuple(tensor.detach() for tensor in state)
                loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                average.update_parameters(model)
                losses.append(loss.item())
                progress.advance(bar)
            scores = {"streaming": streaming_loss(average.module, validation), "block": block_loss(average.module, validation)}
            report = {"epoch": epoch, "training_loss": sum(losses) / len(losses), **scores, "minutes": (time.monotonic() - started) / 60}
            print(json.dumps(report), flush=True)
            parts = {"model": model, "average": average, "optimizer": optimizer, "scheduler": scheduler}
            torch.save({name: part.state_dict() for name, part in parts.items()} | {"epoch": epoch}, checkpoint)
            weights = {name: tensor.half().contiguous() for name, tensor in average.module.state_dict().items()}
            save_file(weights, arguments.out / "weights.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="path of tinyshakespeare.txt")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write weights.safetensors to")
    parser.add_argument("--epochs", type=int, default=26)
    parser.add_argument("--rows", type=int, default=32, help="sequences per batch")
    parser.add_argument("--steps", type=int, default=128, help="characters per truncated backpropagation")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, default=True, help="products in bfloat16 (weights stay float32)")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
