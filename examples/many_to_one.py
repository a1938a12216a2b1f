"""Many-to-one: a sequence of values predicts the next value. An LSTM reads the yearly sunspot numbers since 1700 and says what comes next.

python examples/many_to_one.py [host:port]
"""

import os
import sys
from pathlib import Path

import numpy as np

import cellstate

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("CELLSTATE_ADDRESS", "localhost:50051")
YEARS, SUNSPOTS = np.loadtxt(Path(__file__).parent / "data" / "sunspots.csv", delimiter=",", skiprows=1, unpack=True)

with cellstate.Client(ADDRESS) as client:
    for end in range(len(YEARS) - 5, len(YEARS)):
        result = client.many_to_one("sunspots", SUNSPOTS[:end])
        print(f"{YEARS[end]:.0f}: {result.values[0, 0]:6.1f} predicted, {SUNSPOTS[end]:6.1f} counted")

    # Long or live input goes in chunk by chunk, from any iterable; the cuts do not change the answer by a bit.
    chunked = client.many_to_one("sunspots", iter(np.array_split(SUNSPOTS[:end], 7)))
    print("in seven chunks the last answer is the same:", chunked.values[0, 0] == result.values[0, 0])
