"""A short run of each scenario of the crash harness: no step lost, none repeated. `make crash` runs longer."""

import secrets
import shutil

import pytest

from cellstate_service.settings import Settings
from tests.crash.run import Options, Run
from tests.crash.scenarios import SCENARIOS
from tests.crash.servers import redis_program

MINUTES = 0.6
SESSIONS, THREADS = 40, 5


@pytest.mark.crash
@pytest.mark.timeout(600)
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_no_step_is_lost_or_repeated(scenario: str) -> None:
    chosen = SCENARIOS[scenario]
    if chosen.store != "memory" and "store" not in Settings.model_fields:
        pytest.skip("this server has no stores")
    if chosen.store == "redis" and redis_program() is None:
        pytest.skip("redis-server is not installed")
    run = Run(Options(chosen, MINUTES, SESSIONS, secrets.randbits(32), THREADS))
    report = await run.run()
    assert report.good, "\n".join([f"seed {run.seed}, logs in {run.folder}", *report.lines()])
    shutil.rmtree(run.folder)
