"""Closed loop: a session is stepped with measurements, then with its own answers, as controllers and simulations do.

python examples/closed_loop.py [host:port]
"""

import os
import sys
from pathlib import Path

import numpy as np

import cellstate

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("CELLSTATE_ADDRESS", "localhost:50051")
YEARS, SUNSPOTS = np.loadtxt(Path(__file__).parent / "data" / "sunspots.csv", delimiter=",", skiprows=1, unpack=True)

with cellstate.Client(ADDRESS) as client, client.session("sunspots", ttl_s=60) as session:
    session.many_to_one(SUNSPOTS[:-20])
    for year, counted in zip(YEARS[-20:], SUNSPOTS[-20:], strict=True):  # open loop: each measurement is fed
        value = session.step(counted).values[0, 0]
        print(f"{year:.0f} counted {counted:5.1f}, next year {value:5.1f}")

    with session.fork() as twin:  # the same state, for the check below
        loop = []
        for _ in range(11):  # closed loop: each answer is fed back
            loop.append(value)
            value = session.step(value).values[0, 0]
        print("closed loop:", " ".join(f"{step:.1f}" for step in loop))

        # The server closes the same loop by itself, in one call: generation. Bit for bit.
        generated = twin.generate(max_steps=11).collect().values[:, 0]
        print("the server's own loop gives the same bits:", np.array_equal(generated, loop))
    print("position", session.position)
