"""Sessions through Envoy while replicas go, compared with the same ones on a server of its own. Used by image_test.sh.

image_test_scaled.py ENVOY SERVER SECONDS
"""

import asyncio
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import cellstate
from tests.conversations import differing, speakers, talk

MODELS = {"shakespeare": True, "sunspots": False}
SESSIONS = 8
"""Few, so that three replicas on a small machine do not refuse calls as overloaded."""


async def main(envoy: str, server: str, seconds: str) -> None:
    """Talk for so long, then check."""
    async with cellstate.AsyncClient(envoy, resume_s=60) as client, cellstate.AsyncClient(server) as alone:
        await client.wait_until_ready(30)
        until_s = time.monotonic() + float(seconds)
        said = await talk(client, speakers(MODELS, SESSIONS), lambda _: time.monotonic() < until_s)
        wrong = await differing(alone, said)
    turns = sum(len(got) for got in said.values())
    print(f"{SESSIONS} sessions, {turns} calls and streams through Envoy in all modes, {len(wrong)} of them with other outputs than undisturbed", flush=True)
    if wrong:
        sys.exit("\n".join(wrong[:10]))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
