"""Run one job: JSON in, JSON out. `python -m benchmarks.load`."""

import asyncio
import gc
import json
import sys

from benchmarks.load.generate import generate
from benchmarks.load.job import Job
from benchmarks.load.lasting import answer_lasting, generate_lasting, step_lasting
from benchmarks.load.long import long_input
from benchmarks.load.paced import pace_gateway, pace_streams
from benchmarks.load.residents import make_residents
from benchmarks.load.soak import soak
from benchmarks.load.step import step_streams, step_unary

KINDS = {
    "generate": generate,
    "step-streams": step_streams,
    "step-unary": step_unary,
    "pace-streams": pace_streams,
    "pace-gateway": pace_gateway,
    "long": long_input,
    "residents": make_residents,
    "soak": soak,
    "generate-lasting": generate_lasting,
    "step-lasting": step_lasting,
    "answer-lasting": answer_lasting,
}


def main() -> None:
    """Read the job, run it, write what came of it."""
    job = Job(**json.loads(sys.stdin.readline()))
    gc.freeze()
    result = asyncio.run(KINDS[job.kind](job))
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
