"""Many callers at once, with asyncio: their steps share batches, their results do not depend on each other.

python examples/many_callers.py [host:port]
"""

import asyncio
import os
import sys

import cellstate

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("CELLSTATE_ADDRESS", "localhost:50051")
NAMES = ["ROMEO", "JULIET", "HAMLET", "OPHELIA", "LEAR", "CORDELIA", "MACBETH", "BANQUO"]


async def main() -> None:
    """Let all of them speak, then one of them alone."""
    async with cellstate.AsyncClient(ADDRESS) as client:
        texts = await asyncio.gather(*(client.one_to_many("shakespeare", f"{name}:\n", max_steps=100, seed=7).text() for name in NAMES))
        for name, text in zip(NAMES, texts, strict=True):
            print(f"{name}: {' '.join(text.split())}")
        alone = await client.one_to_many("shakespeare", f"{NAMES[0]}:\n", max_steps=100, seed=7).text()
        print("alone the first says the same:", alone == texts[0])


asyncio.run(main())
