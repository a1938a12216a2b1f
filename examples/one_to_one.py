"""One-to-one: one value in, one value out. A feed-forward model reads handwritten digits; no sequence, so no session and no recurrence.

python examples/one_to_one.py [host:port]
"""

import os
import sys
from pathlib import Path

import numpy as np

import cellstate

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("CELLSTATE_ADDRESS", "localhost:50051")
IMAGES = np.loadtxt(Path(__file__).parent / "data" / "digits.csv", delimiter=",", skiprows=1)  # label, then 8x8 grey levels

with cellstate.Client(ADDRESS) as client:
    for row in IMAGES[:10]:
        result = client.one_to_one("digits", row[1:])
        print(f"a {row[0]:.0f} is read as {result.labels[0]}, with probability {result.values.max():.2f}")
