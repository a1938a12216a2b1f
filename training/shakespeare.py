"""Train `models/shakespeare`: a character-level LSTM language model on Tiny Shakespeare.

The text (1,115,394 characters, 65 distinct, public domain; assembled by A. Karpathy for char-rnn) is not part of the repository: give its path. The first 90 %
train, the last 10 % validate, as in the nanoGPT repository. The run can be interrupted and resumed: it checkpoints every epoch. At the end the weights as
stored (float16) are scored and the folder is completed; `--evaluate` does only that.

    python -m training.shakespeare --text tinyshakespeare.txt --out models/shakespeare
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.card import Card, Table, write_card, write_manifest

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
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, i / total))))
    )
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


@torch.no_grad()
def sample(model: CharacterModel, vocabulary: str, characters: int = 500, temperature: float = 0.8) -> str:
    """Draw text that follows a line break, with a fixed seed."""
    model.eval()
    generator = torch.Generator().manual_seed(1)
    token, state, drawn = torch.tensor([[vocabulary.index("\n")]]), None, []
    for _ in range(characters):
        logits, state = model(token, state)
        token = torch.multinomial(torch.softmax(logits[-1] / temperature, dim=-1), 1, generator=generator)
        drawn.append(vocabulary[int(token)])
    return "".join(drawn)


def manifest(vocabulary: str, dropout: float) -> dict[str, object]:
    """Describe the model folder as `model.yaml` does."""
    return {
        "format": 1,
        "name": "shakespeare",
        "description": "Character-level LSTM language model of Tiny Shakespeare.",
        "kind": "recurrent",
        "cell": "lstm",
        "num_layers": LAYERS,
        "hidden_size": HIDDEN,
        "dropout": dropout,
        "input": {"kind": "tokens", "vocabulary_size": len(vocabulary), "embedding_dim": EMBEDDING},
        "output": {"kind": "tokens", "vocabulary_size": len(vocabulary)},
        "tokenizer": {"kind": "characters", "characters": vocabulary},
        "modes": ["many_to_one", "one_to_many", "many_to_many"],
        "start": "\n",
        "generation": {"max_steps": 400, "temperature": 0.8},
        "dtype": "float32",
    }


def card(scores: dict[str, float], arguments: argparse.Namespace, text: str) -> Card:
    """State the facts of the model."""
    rows = [
        ("streaming: all of it, state carried along", f"{scores['streaming']:.4f}", f"{math.exp(scores['streaming']):.2f}"),
        ("blocks of 256 characters, each from an empty state", f"{scores['block']:.4f}", f"{math.exp(scores['block']):.2f}"),
        ("nanoGPT's character-level transformer, as its repository reports", "1.4697", f"{math.exp(1.4697):.2f}"),
    ]
    return Card(
        title="shakespeare: a character-level LSTM language model",
        summary="Continues text in the manner of Shakespeare's plays, one character at a time.",
        data="Tiny Shakespeare: 1,115,394 characters, 65 distinct, from plays by William Shakespeare, assembled by A. Karpathy for char-rnn. The text is "
        "not part of this "
        "repository; the script takes its path.",
        licence="The text is in the public domain.",
        split="In order: the first 90 % of the characters train, the last 10 % validate, as in the nanoGPT repository. There is no third part: settings "
        "were chosen, and the "
        "end of training watched, with the validation loss in view.",
        training=f"Embedding of {EMBEDDING}, {LAYERS} LSTM layers of {HIDDEN} units, a linear head. {arguments.epochs} epochs of AdamW (peak rate "
        f"{arguments.rate:g}, warm-up and "
        f"cosine), {arguments.rows} sequences of {arguments.steps} characters per step with the state carried from one to the next, dropout "
        f"{arguments.dropout:g}; an exponential "
        "average of the weights is kept, and stored in float16. "
        f"Products were computed in {'bfloat16' if arguments.bfloat16 else 'float32'} while training. Seed {arguments.seed}.",
        scores=Table(("validation", "loss (nats per character)", "perplexity"), rows),
        scores_note="Measured with the weights as stored (float16, computed in float32). A recurrent network is used with its state carried along, so the "
        "first row is what a "
        "caller gets; the second is the nearest to nanoGPT's figure, which is a mean over random blocks of 256 characters.",
        sample=text,
        command="python -m training.shakespeare --text tinyshakespeare.txt --out models/shakespeare",
        reproducibility="One and a half to two hours on one core. The run can be interrupted and resumed. Equal weights need the same torch build, kind of "
        "processor, number of threads "
        f"(1 was used) and no interruption; torch {torch.__version__} gave these. `--evaluate` repeats the scores and this page from the stored weights.",
        use="Demonstration, benchmarks and tests of text generation: continuing a prompt, generating from nothing, carrying on a conversation's state.",
        limits="It knows the 65 characters of its text only; any other is refused. It has words, names, verse and line breaks, and no knowledge or sense "
        "beyond a line or two. "
        "The text is some four hundred years old, and so are its views.",
    )


def evaluate(arguments: argparse.Namespace) -> None:
    """Score the stored weights on the validation text; write `model.yaml`, `scores.json` and the card beside them."""
    torch.set_num_threads(arguments.threads)
    vocabulary, _, validation = read_text(arguments.text)
    path = arguments.out / "weights.safetensors"
    path.chmod(0o644)
    model = CharacterModel(len(vocabulary), arguments.dropout)
    model.load_state_dict(load_file(path))
    scores = {"streaming": streaming_loss(model, validation), "block": block_loss(model, validation)}
    print(json.dumps(scores))
    write_manifest(arguments.out, manifest(vocabulary, arguments.dropout))
    write_card(arguments.out, card(scores, arguments, sample(model, vocabulary)), {"metric": "validation loss, nats per character", **scores})


def main() -> None:
    """Read the command line, train unless told only to evaluate, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="path of tinyshakespeare.txt")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write weights.safetensors to")
    parser.add_argument("--epochs", type=int, default=28)
    parser.add_argument("--rows", type=int, default=64, help="sequences per batch")
    parser.add_argument("--steps", type=int, default=100, help="characters per truncated backpropagation")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, default=True, help="products in bfloat16 (weights stay float32)")
    parser.add_argument("--evaluate", action="store_true", help="do not train: score the weights in OUT and write the rest of the folder")
    arguments = parser.parse_args()
    if not arguments.evaluate:
        train(arguments)
    evaluate(arguments)


if __name__ == "__main__":
    main()
