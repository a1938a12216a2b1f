"""The same bits: one session's outputs and state alone, and among 63 others with its inputs cut otherwise, through a real server."""

import asyncio
import random
from collections.abc import Iterator

import grpc.aio

from benchmarks.run import Run
from benchmarks.servers import Cellstate
from cellstate.v1 import inference_pb2, inference_pb2_grpc, session_pb2, session_pb2_grpc, types_pb2

STEPS = 200
OTHERS = 63
VOCABULARY = {"ref": 256, "small": 64}
_RANDOM_SEED = 7


def measure(run: Run) -> None:
    """Record 1 for each model whose session gives the same bits, 0 otherwise."""
    server = Cellstate(run.options.settings)
    with server.running(), run.item("the same bits", len(run.options.models)):
        for model in run.options.models:
            run.results.facts.setdefault("same_bits", {})[model] = int(asyncio.run(_same_bits(server.address, model)))
            run.advance()


async def _same_bits(address: str, model: str) -> bool:
    generator = random.Random(_RANDOM_SEED)  # noqa: S311 (reproducible inputs)
    inputs = [generator.randrange(VOCABULARY[model]) for _ in range(STEPS)]
    async with grpc.aio.insecure_channel(address) as channel:
        alone = await _play(channel, model, "bits-alone", inputs, [STEPS])
        others = [_play(channel, model, f"bits-other-{number}", generator.sample(inputs, STEPS), _cuts(generator)) for number in range(OTHERS)]
        among, *_ = await asyncio.gather(_play(channel, model, "bits-among", inputs, _cuts(generator)), *others)
    return alone == among


def _cuts(generator: random.Random) -> list[int]:
    """Return sizes of chunks that make up all steps."""
    sizes: list[int] = []
    while sum(sizes) < STEPS:
        sizes.append(min(generator.choice((1, 2, 3, 7, 16, 33)), STEPS - sum(sizes)))
    return sizes


async def _play(channel: grpc.aio.Channel, model: str, name: str, inputs: list[int], sizes: list[int]) -> tuple[bytes, str]:
    """Step a new session through its inputs, chunk after chunk; return all outputs' bytes and the digest of its state, and delete it."""
    sessions = session_pb2_grpc.SessionServiceStub(channel)
    await sessions.CreateSession(session_pb2.CreateSessionRequest(session=session_pb2.Session(name=name, model=model)))
    try:
        outputs = b""
        async for answer in inference_pb2_grpc.InferenceServiceStub(channel).ManyToMany(_requests(name, inputs, sizes)):
            outputs += answer.output.values.tensor.data
        found = await sessions.GetSession(session_pb2.GetSessionRequest(name=name))
        if len(outputs) != 4 * STEPS * VOCABULARY[model] or not found.session.state_digest:
            raise RuntimeError(f"{name}: {len(outputs)} bytes of output, digest {found.session.state_digest!r}")
        return outputs, found.session.state_digest
    finally:
        await sessions.DeleteSession(session_pb2.DeleteSessionRequest(name=name))


def _requests(name: str, inputs: list[int], sizes: list[int]) -> Iterator[inference_pb2.ManyToManyRequest]:
    target = inference_pb2.Target(session=inference_pb2.SessionReference(name=name))
    options = types_pb2.OutputOptions(form=types_pb2.OUTPUT_FORM_LOGITS)
    yield inference_pb2.ManyToManyRequest(open=inference_pb2.ManyToManyOpen(target=target, output=options))
    at = 0
    for size in sizes:
        values = types_pb2.Sequence(tokens=types_pb2.TokenIds(ids=inputs[at : at + size]))
        yield inference_pb2.ManyToManyRequest(input=inference_pb2.InputChunk(values=values))
        at += size
