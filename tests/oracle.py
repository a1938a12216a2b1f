"""The oracle: what a model folder must answer, by a plain loop over `torch.nn` modules. It imports nothing of the server.

    oracle = Oracle(folder)
    session = oracle.session(seed=7)
    logits = session.consume(oracle.encode("Once"))
    tokens = session.generate(20, Sampling(temperature=0.8))

A draw follows what the contract says of sampling: a number in [0, 1) that only the seed and the position decide (SplitMix64's finalizer over both), laid over
the cumulative probabilities. It is written here in plain Python numbers. Where a draw lies so near a boundary that the last bits of a logit could turn it,
`NearTie` is raised: that test must choose another seed, or it would test rounding.
"""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

Values = NDArray[np.float32]

NEAR = 2e-6
MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "gelu": functional.gelu}


class NearTie(Exception):  # noqa: N818 (named for what happened)
    """Rounding could turn this draw."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. `temperature` and `top_p` travel as float32, so they are rounded to it."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


GREEDY = Sampling(temperature=0.0)


class Oracle:
    """A model folder as `torch.nn` modules."""

    def __init__(self, folder: Path) -> None:
        self.manifest: dict[str, Any] = yaml.safe_load((folder / "model.yaml").read_text(encoding="utf-8"))
        self.weights = {name: tensor.float() for name, tensor in load_file(folder / "weights.safetensors").items()}
        self.tokens_in = self.manifest["input"]["kind"] == "tokens"
        self.tokens_out = self.manifest["output"]["kind"] == "tokens"
        self.characters: str = self.manifest.get("tokenizer", {}).get("characters", "")
        self.rnn = self._recurrent() if self.manifest["kind"] == "recurrent" else None

    def session(self, seed: int = 0) -> "OracleSession":
        return OracleSession(self, seed)

    def encode(self, text: str) -> list[int]:
        return [self.characters.index(character) for character in text]

    def decode(self, tokens: list[int]) -> str:
        return "".join(self.characters[token] for token in tokens)

    def labels(self, outputs: Values) -> list[str]:
        return [self.manifest["output"]["labels"][int(index)] for index in outputs.argmax(axis=1)]

    def _recurrent(self) -> nn.RNNBase:
        parts = self.manifest
        inputs = parts["input"]["embedding_dim"] if self.tokens_in else parts["input"]["features"]
        sizes = (inputs, parts["hidden_size"], parts["num_layers"])
        bias = parts.get("bias", True)
        rnn: nn.RNNBase
        if parts["cell"] == "lstm":
            rnn = nn.LSTM(*sizes, bias=bias, proj_size=parts.get("proj_size", 0))
        elif parts["cell"] == "gru":
            rnn = nn.GRU(*sizes, bias=bias)
        else:
            rnn = nn.RNN(*sizes, bias=bias, nonlinearity=parts["cell"].removeprefix("rnn_"))
        rnn.load_state_dict({name.removeprefix("rnn."): tensor for name, tensor in self.weights.items() if name.startswith("rnn.")})
        return rnn

    def linear(self, name: str, x: Tensor) -> Tensor:
        return functional.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def embed(self, value: Any) -> Tensor:
        """Return one input as the network's first layer takes it."""
        if self.tokens_in:
            return self.weights["embedding.weight"][int(value)]
        x = torch.tensor(np.asarray(value, dtype=np.float32).reshape(-1))
        units = self.manifest["input"].get("normalization")
        return x if units is None else (x - torch.tensor(units["mean"])) / torch.tensor(units["scale"])

    def head(self, hidden: Tensor) -> Values:
        output = self.linear("head", hidden)
        section = self.manifest["output"]
        if section.get("activation") == "softmax":
            output = output.softmax(0)
        elif section.get("activation") == "sigmoid":
            output = output.sigmoid()
        elif not self.tokens_out and section.get("normalization"):
            units = section["normalization"]
            output = output * torch.tensor(units["scale"]) + torch.tensor(units["mean"])
        return np.array(output.numpy(), dtype=np.float32)


class OracleSession:
    """One sequence: state, position and last output."""

    def __init__(self, oracle: Oracle, seed: int) -> None:
        self._oracle = oracle
        self._state: Any = None
        self.seed = seed
        self.position = 0
        self.last: Values | None = None

    def consume(self, inputs: Any) -> Values:
        """Take one step for each input and return the outputs [T, width]."""
        return np.stack([self._step(value) for value in inputs])

    def generate(self, steps: int, sampling: Sampling = GREEDY, seed: int | None = None) -> Any:
        """Return what was drawn (token ids, or values [T, features]) and fed."""
        if self.last is None:
            start = self._oracle.manifest["start"]
            self.consume(self._oracle.encode(start) if isinstance(start, str) else [start])
        made: list[Any] = []
        for _ in range(steps):
            made.append(self.draw(sampling, seed) if self._oracle.tokens_out else self.output())
            self.consume([made[-1]])
        return made if self._oracle.tokens_out else np.stack(made)

    def draw(self, sampling: Sampling = GREEDY, seed: int | None = None) -> int:
        """Return the token that the last output draws at this position."""
        logits = [float(value) for value in self.output()]
        return draw(logits, sampling, self.seed if seed is None else seed, self.position)

    def log_probability(self, token: int) -> float:
        logits = [float(value) for value in self.output()]
        return logits[token] - max(logits) - math.log(sum(math.exp(value - max(logits)) for value in logits))

    def output(self) -> Values:
        assert self.last is not None, "no step was taken"
        return self.last

    @torch.no_grad()
    def _step(self, value: Any) -> Values:
        x = self._oracle.embed(value)
        if self._oracle.rnn is not None:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="LSTM with projections is not supported with oneDNN")
                hidden, self._state = self._oracle.rnn(x.view(1, 1, -1), self._state)
            x = hidden.view(-1)
        else:
            for index in range(len(self._oracle.manifest["hidden_sizes"])):
                x = ACTIVATIONS[self._oracle.manifest["activation"]](self._oracle.linear(f"layers.{index}", x))
        self.last = self._oracle.head(x)
        self.position += 1
        return self.last


def uniform(seed: int, position: int) -> float:
    """Return the number in [0, 1) of a seed and a position: SplitMix64's finalizer, first over the seed, then with the position as a counter."""
    bits = _mix((_mix((seed + GOLDEN) & MASK) + (position + 1) * GOLDEN) & MASK)
    return (bits >> 11) / (1 << 53)


def draw(logits: list[float], sampling: Sampling, seed: int, position: int) -> int:
    """Return one token.

    Raises:
        NearTie: Rounding could turn it.
    """
    if sampling.temperature == 0:
        best, second = [*sorted(logits, reverse=True), -math.inf][:2]
        _clear(best - second)
        return logits.index(best)
    temperature, top_p = float(np.float32(sampling.temperature)), float(np.float32(sampling.top_p))
    order = list(range(len(logits)))
    if sampling.top_k or top_p < 1:
        order.sort(key=lambda token: -logits[token])
    scaled = [logits[token] / temperature for token in order]
    if 0 < sampling.top_k < len(order):
        _clear(scaled[sampling.top_k - 1] - scaled[sampling.top_k])
        scaled = scaled[: sampling.top_k]
    weights = [math.exp(value - max(scaled)) for value in scaled]
    total = sum(weights)
    kept: list[float] = []
    for weight in weights:
        if kept and top_p < 1:
            _clear(sum(kept) / total - top_p)
            if sum(kept) / total >= top_p:
                break
        kept.append(weight)
    point, reached = uniform(seed, position) * sum(kept), 0.0
    for token, weight in zip(order, kept, strict=False):
        reached += weight
        _clear((reached - point) / total)
        if reached > point:
            return token
    raise NearTie("the last boundary was passed")


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def _clear(margin: float) -> None:
    if abs(margin) < NEAR:
        raise NearTie(f"a margin of {margin:g}: choose another seed")
