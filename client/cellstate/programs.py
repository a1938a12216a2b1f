"""What a call asks for: options of the four modes as typed keywords, and programs for `run`. No protobuf in here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from cellstate.info import Durability
from cellstate.inputs import Input, Tokens
from cellstate.outputs import Emit, Form

if TYPE_CHECKING:
    from cellstate._tracking import Handle

Stop: TypeAlias = str | Tokens | Sequence[str | Tokens | Sequence[int]]
"""One stop sequence, or several: text, or token ids."""


class DrawOptions(TypedDict, total=False):
    """How a token is drawn from an output. What is left out, or None, is the model's default.

    Keys:
        temperature: 0 takes the most probable token, otherwise logits are divided by it; 0 to 100.
        top_k: Keep only the k most probable tokens; 0 keeps all.
        top_p: Keep the smallest set of most probable tokens whose probabilities reach this sum.
        seed: Seed of the draws. Left out: the session's; without a session the client draws one and sends it, and the completion tells it.
    """

    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int | None


class CallOptions(DrawOptions, total=False):
    """Options of every call.

    Keys:
        form: Form of the outputs: text, tokens, values or logits. Left out: text for a model with a tokenizer, tokens without one, values for a numeric model.
        log_probabilities: Also answer the natural logarithm of each drawn token's probability.
        timeout_s: Seconds after which the call ends with `DeadlineExceeded`; `math.inf` for none. Left out: the client's; for streams none.
    """

    form: Form | str | None
    log_probabilities: bool
    timeout_s: float | None


class DirectiveOptions(DrawOptions, total=False):
    """What to generate.

    Keys:
        max_steps: Steps to generate at most: the horizon of a forecast. Left out: the model's default.
        stop: Stop sequences: generation ends after the step that completes one, which is emitted and in the state.
    """

    max_steps: int | None
    stop: Stop | None


class GenerationOptions(DirectiveOptions, CallOptions, total=False):
    """Options of calls that generate: those of `DirectiveOptions` and of `CallOptions`."""


class StreamOptions(CallOptions, total=False):
    """Options of many-to-many calls: those of `CallOptions` and one more.

    Keys:
        emit: Which outputs of inputs are answered: all (the default), last or none. `last` answers one output per chunk.
    """

    emit: Emit | str | None


class ChannelOptions(DrawOptions, total=False):
    """Options of a channel of a gateway: those of `DrawOptions` and these.

    Keys:
        form: Form of the outputs: text, tokens, values or logits. Left out: text for a model with a tokenizer, tokens without one, values for a numeric model.
        log_probabilities: Also answer the natural logarithm of each drawn token's probability.
        emit: Which outputs of inputs are answered: all (the default), last or none. `last` answers one output per chunk.
    """

    form: Form | str | None
    log_probabilities: bool
    emit: Emit | str | None


class SessionOptions(TypedDict, total=False):
    """Settings of a new session.

    Keys:
        name: 1 to 128 characters of A-Z a-z 0-9 . _ -; left out: the server makes one.
        ttl_s: Seconds that it lives unused; left out: the server's default.
        expire_time: An absolute end instead, with a time zone.
        seed: Seed of draws that name none; left out: the server draws one.
        labels: At most 32.
        durability: What it survives; left out: the server's default.
    """

    name: str | None
    ttl_s: float | None
    expire_time: datetime | None
    seed: int | None
    labels: Mapping[str, str] | None
    durability: Durability | str | None


class SessionChanges(TypedDict, total=False):
    """Settings of a session that can be changed; what is left out stays. The keys mean what they mean in `SessionOptions`."""

    ttl_s: float | None
    expire_time: datetime | None
    labels: Mapping[str, str] | None
    durability: Durability | str | None


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. The fields mean what the keys of `DrawOptions` mean."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Generation:
    """What to generate. The fields mean what the keys of `DirectiveOptions` mean."""

    max_steps: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: Stop | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Program:
    """Consume `input`, emit some of its outputs, then generate: one entry of `run`.

    Attributes:
        model: A model's name, for a fresh state that is dropped afterwards; or a session handle.
        input: Consumed first; None to generate from the session's last output or the model's start value.
        emit: Which outputs of the input are answered; None: the last without generation, none with it.
        generate: What to generate after the input: settings, or just a number of steps; None: nothing.
        sampling: How tokens are drawn from outputs of inputs, and in generation that does not say.
        form: Form of the outputs; None: the model's own.
        log_probabilities: Also answer the natural logarithm of each drawn token's probability.
    """

    model: "str | Handle"
    input: Input | None = None
    emit: Emit | str | None = None
    generate: Generation | int | None = None
    sampling: Sampling | None = None
    form: Form | str | None = None
    log_probabilities: bool = False


def check_options(options: Mapping[str, Any], allowed: Any, call: str) -> None:
    """Refuse keywords that `allowed`, a TypedDict, does not have.

    Raises:
        TypeError: An unknown keyword, told as Python tells it.
    """
    known = allowed.__required_keys__ | allowed.__optional_keys__
    for key in options:
        if key not in known:
            raise TypeError(f"{call}() got an unexpected keyword argument {key!r}; it takes {', '.join(sorted(known))}")
