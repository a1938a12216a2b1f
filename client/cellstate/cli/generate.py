"""`cellstate generate`."""

import sys
import time
from typing import Annotated

import typer

from cellstate import Client, GenerationOptions, NotFound, Session, SessionGone
from cellstate.cli.connection import DEFAULT_ADDRESS, Address, TlsCa, TokenFile, connect
from cellstate.cli.console import err, fail, speed

_DRAWS = "How tokens are drawn"


def generate(  # noqa: PLR0913 (each is a flag)
    *,
    model: Annotated[str, typer.Argument(help="A language model that the server has loaded.")],
    prompt: Annotated[str | None, typer.Argument(help="Text to go on from; - reads standard input. Without one, the model's start value.")] = None,
    max_steps: Annotated[int | None, typer.Option("--max-steps", "-n", min=1, help="Tokens to generate at most.")] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End after this text. May be given several times.")] = None,
    session: Annotated[str | None, typer.Option("--session", "-s", help="Go on with this session; it is made on MODEL where there is none.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=100, help="0 takes the most probable token.", rich_help_panel=_DRAWS)] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="Keep the k most probable tokens; 0 keeps all.", rich_help_panel=_DRAWS)] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="Keep the most probable tokens up to this sum.", rich_help_panel=_DRAWS)] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed and prompt give the same text.", rich_help_panel=_DRAWS)] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the text.")] = False,
    address: Address = DEFAULT_ADDRESS,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Generate text, token by token as it appears.

    One-to-many: a prompt predicts a sequence. With --session the server keeps the state, so that a later call goes on where this one ended.

    [bold]Example:[/bold] cellstate generate shakespeare "ROMEO:" -n 400 --temperature 0.8
    """
    options: GenerationOptions = {"max_steps": max_steps, "stop": stop or None, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    text = sys.stdin.read() if prompt == "-" else prompt
    with connect(address, token_file, tls_ca) as client:
        begun = time.perf_counter()
        stream = client.one_to_many(model if session is None else open_or_make(client, session, model), text, **options)
        for output in stream:
            sys.stdout.write(output.text)
            sys.stdout.flush()
        seconds = time.perf_counter() - begun
    sys.stdout.write("\n")
    if not quiet and stream.completion is not None:
        done = stream.completion
        err.print(f"{speed(done.generated_steps, 'tokens', seconds)}, seed {done.seed}, position {done.position}, {done.reason.value}", style="dim")


def open_or_make(client: Client, name: str, model: str) -> Session:
    """Return the caller's session of that name, made on the model where there is none."""
    try:
        session = client.open_session(name)
    except SessionGone as gone:
        err.print(f"the session {name} is gone ({gone.why}); it begins anew", style="yellow", markup=False)
    except NotFound:
        pass
    else:
        if session.model != model:
            fail(f"the session {name} is on the model {session.model}, not {model}")
        return session
    return client.session(model, name=name, keep=True).create()
