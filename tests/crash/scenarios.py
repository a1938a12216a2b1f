"""Scenarios: which store and durabilities, how many servers, what goes wrong how often, and what must at least have happened for a run to prove anything."""

from collections.abc import Mapping
from dataclasses import dataclass

LEASE_S = 3


@dataclass(frozen=True)
class Scenario:
    """What a run is made of.

    Attributes:
        name: Of `--scenario`.
        store: memory, sqlite or redis.
        durabilities: Of sessions, with weights. MEMORY sessions may be lost where servers are killed; no others may.
        replicas: Servers side by side.
        events: What goes wrong: how many of each are in a deck, which is shuffled and dealt to its end, then anew (`Disturber` has a method of each name).
        pause_s: Mean time between two events.
        per_minute: Least counts of a run, for each minute of it.
    """

    name: str
    store: str
    durabilities: Mapping[str, float]
    replicas: int
    events: Mapping[str, int]
    pause_s: float
    per_minute: Mapping[str, float]

    def settings(self, path: str, url: str) -> list[str]:
        """Return the servers' settings, `key=value` each."""
        if self.store == "memory":
            return ["store.kind=memory"]
        where = f"store.path={path}" if self.store == "sqlite" else f"store.url={url}"
        return [f"store.kind={self.store}", where, "store.checkpoint_s=0.5", f"store.lease_s={LEASE_S}"]

    def least(self, minutes: float) -> dict[str, int]:
        """Return the least counts of a run: a part of a minute counts as that part, what is asked for at all at least once."""
        return {name: max(1, int(count * minutes)) for name, count in self.per_minute.items()}


CONNECTIONS = {"cut": 4, "hold": 2, "slow": 1, "refuse": 1}
SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            name="memory",
            store="memory",
            durabilities={"memory": 1},
            replicas=1,
            events=CONNECTIONS,
            pause_s=0.7,
            per_minute={"cuts": 20, "resumes_mid_generation": 20, "repeats_answered": 20, "sessions": 50, "steps": 10_000},
        ),
        Scenario(
            name="sqlite",
            store="sqlite",
            durabilities={"periodic": 0.6, "sync": 0.35, "memory": 0.05},
            replicas=1,
            events={"kill": 3, "drain": 1, **CONNECTIONS},
            pause_s=1.2,
            per_minute={
                "kills": 3,
                "kills_in_checkpoint": 0.5,
                "kills_with_unacknowledged": 2,
                "cuts": 8,
                "resumes_mid_generation": 20,
                "repeats_answered": 20,
                "sessions": 50,
                "steps": 8_000,
            },
        ),
        Scenario(
            name="redis",
            store="redis",
            durabilities={"periodic": 0.6, "sync": 0.35, "memory": 0.05},
            replicas=2,
            events={"kill": 3, "drain": 1, "add": 1, "restart_redis": 1, "freeze": 1, **CONNECTIONS},
            pause_s=1.0,
            per_minute={
                "kills": 2,
                "kills_in_checkpoint": 0.3,
                "kills_with_unacknowledged": 2,
                "cuts": 6,
                "freezes": 0.5,
                "moves": 10,
                "resumes_mid_generation": 10,
                "repeats_answered": 10,
                "sessions": 40,
                "steps": 4_000,
            },
        ),
    )
}
