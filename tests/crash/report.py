"""What a run counted, the least that it must have, and the line that it ends with."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

LINE = (
    "kills",
    "kills_in_checkpoint",
    "kills_with_unacknowledged",
    "cuts",
    "moves",
    "resumes_mid_generation",
    "repeats_answered",
    "sessions",
    "steps",
    "differences",
)


@dataclass
class Counts:
    """What happened.

    Attributes:
        kills: Servers killed; `kills_in_checkpoint` of them while they were seen to write one.
        kills_with_unacknowledged: Kills while a session had asked for what it had not been answered in full.
        cuts: Connections cut while open.
        moves: Times that a session got an output from another server than the one before.
        resumes_mid_generation: Generations under way when their connection or server went, and completed.
        repeats_answered: Requests that servers answered again, by their own count; in it the duplicates that this harness sent.
        sessions, steps: Checked.
        differences: Sessions that did not get what they had to.
        drains, added, freezes, redis_restarts: What else was done to servers.
        unfinished: Sessions that did not come to their end in time.
    """

    kills: int = 0
    kills_in_checkpoint: int = 0
    kills_with_unacknowledged: int = 0
    cuts: int = 0
    moves: int = 0
    resumes_mid_generation: int = 0
    repeats_answered: int = 0
    sessions: int = 0
    steps: int = 0
    differences: int = 0
    drains: int = 0
    added: int = 0
    freezes: int = 0
    redis_restarts: int = 0
    unfinished: int = 0

    def line(self) -> str:
        return "crash " + " ".join(f"{name}={getattr(self, name)}" for name in LINE)

    def too_few(self, least: Mapping[str, int]) -> list[str]:
        """Say which counts are below their minimum: what was never under way was not tried."""
        return [f"{name}={getattr(self, name)} is below {count}" for name, count in least.items() if getattr(self, name) < count]


@dataclass
class Report:
    """The end of a run."""

    counts: Counts
    recoveries_s: Sequence[float]
    others: Mapping[str, int]
    wrong: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.wrong and not self.counts.differences and not self.counts.unfinished

    def lines(self) -> list[str]:
        """Return what is told, the summary last."""
        told = [f"WRONG {each}" for each in self.wrong[:20]]
        if len(self.wrong) > 20:
            told.append(f"WRONG and {len(self.wrong) - 20} more")
        if self.recoveries_s:
            ordered = sorted(self.recoveries_s)
            p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
            told.append(f"recovery_s median={statistics.median(ordered):.2f} p99={p99:.2f} of={len(ordered)}")
        told.append("besides " + " ".join(f"{name}={value}" for name, value in self.others.items()))
        return [*told, self.counts.line()]
