"""Tokens per second: generation delivered over gRPC, beside the bare loop over the same network without a server.

    python -m benchmarks.generation --model shakespeare --streams 1 64 --steps 300

Each round runs the bare loop and then the server (a process of its own, the callers in another), so that both meet the same machine; the table gives the
median of the rounds, and of the ratio within each round.
"""

import argparse
import asyncio
import multiprocessing
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import cellstate
from cellstate_service.engine.request import Sampling
from cellstate_service.engine.sampler import Draw, draw_tokens
from cellstate_service.models.loading import load_model

MODELS = Path(__file__).parent.parent / "models"


def bare_tokens_per_s(model_name: str, rows: int, steps: int) -> float:
    """Generate in a loop over the network's step for `rows` rows: no server, no scheduler, no state pool."""
    torch.set_num_threads(1)
    model = load_model(MODELS / model_name)
    with torch.inference_mode():
        state = model.network.initial_state(rows)
        outputs, state = model.network.step(torch.zeros(rows, dtype=torch.int64), state)
        sampling = Sampling(temperature=0.8)
        began_s = time.perf_counter()
        for position in range(steps):
            tokens = draw_tokens(outputs, [Draw(sampling, seed, position) for seed in range(rows)])
            outputs, state = model.network.step(torch.tensor(tokens), state)
        return rows * steps / (time.perf_counter() - began_s)


async def _generate(client: cellstate.AsyncClient, model_name: str, steps: int, seed: int) -> int:
    received = 0
    async for output in client.one_to_many(model_name, "\n", max_steps=steps, temperature=0.8, seed=seed):
        received += output.position - output.first_position
    return received


async def _call(address: str, model_name: str, streams: int, steps: int) -> float:
    async with cellstate.AsyncClient(address, timeout_s=600.0) as client:
        await client.wait_until_ready(30.0)
        await _generate(client, model_name, 10, 0)
        began_s = time.perf_counter()
        received = await asyncio.gather(*(_generate(client, model_name, steps, seed) for seed in range(streams)))
        elapsed_s = time.perf_counter() - began_s
    if sum(received) != streams * steps:
        raise RuntimeError(f"{sum(received)} tokens arrived, {streams * steps} were asked for")
    return sum(received) / elapsed_s


def served_tokens_per_s(address: str, model_name: str, streams: int, steps: int) -> float:
    """Generate over gRPC, `streams` at once."""
    return asyncio.run(_call(address, model_name, streams, steps))


def _apart(pool: "multiprocessing.pool.Pool", function: object, *arguments: object) -> float:
    return float(pool.apply(function, arguments))  # type: ignore[arg-type]


def main() -> None:
    """Read the command line, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shakespeare")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--steps", type=int, default=300, help="tokens of each stream")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    command = [Path(sys.executable).with_name("cellstate"), "serve", "--port", "0", "--metrics-port", "0", "--models", MODELS]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603
    try:
        assert server.stdout is not None
        ready = re.search(r"gRPC on ([\w.:\[\]]+)", server.stdout.readline())
        if ready is None:
            raise RuntimeError("the server did not come up")
        address = ready[1].rstrip(",")
        rows = []
        for streams in arguments.streams:
            pairs = []
            for _ in track(range(arguments.rounds), description=f"{streams} streams", transient=True):
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    bare = _apart(pool, bare_tokens_per_s, arguments.model, streams, arguments.steps)
                    served = _apart(pool, served_tokens_per_s, address, arguments.model, streams, arguments.steps)
                pairs.append((bare, served))
            rows.append((streams, pairs))
    finally:
        server.terminate()
        server.wait(30)
    title = f"{arguments.model}, {arguments.steps} tokens each, median of {arguments.rounds} rounds"
    table = Table("streams", "bare loop, tokens/s", "served, tokens/s", "served / bare", title=title)
    for streams, pairs in rows:
        bare, served, ratio = (statistics.median(values) for values in zip(*((b, s, s / b) for b, s in pairs), strict=True))
        table.add_row(str(streams), f"{bare:,.0f}", f"{served:,.0f}", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
