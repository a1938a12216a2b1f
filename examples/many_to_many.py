"""Many-to-many: one output per input as they arrive, then a stream in both directions at once, with directives.

python examples/many_to_many.py [host:port]
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import cellstate

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("CELLSTATE_ADDRESS", "localhost:50051")
YEARS, SUNSPOTS = np.loadtxt(Path(__file__).parent / "data" / "sunspots.csv", delimiter=",", skiprows=1, unpack=True)


def measurements() -> Iterator[float]:
    """Yield one value at a time, as a sensor would."""
    for value in SUNSPOTS:
        yield float(value)


with cellstate.Client(ADDRESS) as client:
    predicted = np.concatenate([output.values[:, 0] for output in client.many_to_many("sunspots", measurements())])
    error = np.sqrt(np.mean((predicted[:-1] - SUNSPOTS[1:]) ** 2))
    print(f"{len(predicted)} predictions, each of the year after its input; root mean square error {error:.1f}")

    with client.stream("sunspots", emit="last") as stream:
        stream.send(SUNSPOTS)  # a chunk of many steps
        print(f"next year: {next(stream).values[0, 0]:.1f}")
        stream.generate(max_steps=100_000)  # far more than is wanted
        for output in stream:
            print(f"forecast up to step {output.position}, the last value {output.values[-1, 0]:.1f}")
            break
        print("stopped at position", stream.stop())
        stream.half_close()
        print("outputs that were on their way:", sum(output.steps for output in stream), "steps")
