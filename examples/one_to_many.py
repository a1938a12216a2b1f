"""One-to-many: one value, or a prompt, predicts a sequence. Text appears as it is generated; then a forecast of two solar cycles.

python examples/one_to_many.py [host:port]
"""

import os
import sys
from pathlib import Path

import numpy as np

import cellstate

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("CELLSTATE_ADDRESS", "localhost:50051")
YEARS, SUNSPOTS = np.loadtxt(Path(__file__).parent / "data" / "sunspots.csv", delimiter=",", skiprows=1, unpack=True)

with cellstate.Client(ADDRESS) as client:
    print("ROMEO:", end="")
    with client.one_to_many("shakespeare", "ROMEO:", max_steps=300, temperature=0.8) as outputs:
        for output in outputs:
            print(output.text, end="", flush=True)
    if outputs.completion is not None:  # the same seed writes the same text again
        print(f"\n[{outputs.completion.reason}, {outputs.completion.steps} steps, seed {outputs.completion.seed}]\n")

    for output in client.one_to_many("sunspots", SUNSPOTS, max_steps=22):
        for offset, value in enumerate(output.values[:, 0]):
            year = YEARS[-1] + 1 + output.first_position + offset - len(SUNSPOTS)
            print(f"{year:.0f} {'*' * max(0, round(float(value) / 4))} {value:.1f}")
