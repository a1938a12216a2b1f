"""A gateway: many sessions on one stream, stepped together by one message up and one down.

python examples/gateway.py [host:port]
"""

import asyncio
import os
import sys
import time
from pathlib import Path

import numpy as np

import cellstate

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("CELLSTATE_ADDRESS", "localhost:50051")
YEARS, SUNSPOTS = np.loadtxt(Path(__file__).parent / "data" / "sunspots.csv", delimiter=",", skiprows=1, unpack=True)
STATIONS = 64


async def main() -> None:
    """Feed 64 stations' measurements, each to a state of its own."""
    async with cellstate.AsyncClient(ADDRESS) as client, client.gateway() as gateway:
        stations = await asyncio.gather(*(gateway.open("sunspots") for _ in range(STATIONS)))
        began = time.perf_counter()
        for counted in SUNSPOTS[-50:]:
            answers = await gateway.step({station: counted * (1 + number / 1000) for number, station in enumerate(stations)})
        took = time.perf_counter() - began
        print(f"{50 * STATIONS} steps in {took:.2f} s, {50 * STATIONS / took:.0f} a second")
        print("next year:", " ".join(f"{answers[station].values[0, 0]:.1f}" for station in stations[::9]))

        # An error is its channel's own: the others go on, and another channel can be opened.
        answers = await gateway.step(dict(zip(stations, [float("nan"), *SUNSPOTS[:3]], strict=False)))
        print("failed:", [answer.reason for answer in answers.values() if isinstance(answer, cellstate.CellstateError)])
        print("position of the second:", stations[1].position)


asyncio.run(main())
