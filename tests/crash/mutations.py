"""Proof that the harness sees what it is to see: the service is copied, one small thing is broken in the copy, and a run on it must fail.

    python -m tests.crash.mutations                  # all that are written
    python -m tests.crash.mutations --only "no fence" --minutes 1

A mutation replaces texts in files of the copy; where a text is not found, that is an error, not a mutation that passed.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.crash.servers import ROOT

SERVICE = Path("cellstate_service")
FAILED = 1
"""Exit status of a run that found something."""


class NotFound(Exception):  # noqa: N818 (named for what happened)
    """A text that a mutation replaces is not there: the code has changed, and the mutation must."""


@dataclass(frozen=True)
class Edit:
    """One text that is replaced, wherever it stands in a file, at least once."""

    file: str
    old: str
    new: str

    def apply(self, service: Path) -> None:
        path = service / SERVICE / self.file
        text = path.read_text(encoding="utf-8")
        if self.old not in text:
            raise NotFound(f"{self.file} has no {self.old!r}")
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


@dataclass(frozen=True)
class Mutation:
    """Something broken, and the scenario that must tell.

    Attributes:
        edits: What is broken; nothing, to see that a run on the copy as it is finds nothing.
        finds: What the failing run must say, so that a server that does not even start is no proof.
    """

    name: str
    scenario: str
    edits: tuple[Edit, ...] = ()
    finds: tuple[str, ...] = ("expected", "in place of", "is missing", "too many", "PositionError", "SESSION_ROLLED_BACK", "answered otherwise", "SESSION_LOST")


CODEC = "rpc/snapshot_codec.py"
MUTATIONS = (
    Mutation(
        "a duplicate is applied",
        "memory",
        (
            Edit(
                "engine/core.py",
                "        request.position = position\n        if position > resident.position:\n",
                "        request.position = position = max(position, resident.position)\n        if position > resident.position:\n",
            ),
        ),
    ),
    Mutation("the journal is not in snapshots", "sqlite", (Edit(CODEC, "    if state.journal is not None:\n", "    if False:\n"),)),
    Mutation("the seed is not in snapshots", "sqlite", (Edit(CODEC, "seed=anchor.sampling.seed,", "seed=0,"),)),
    Mutation(
        "the last output is not in snapshots",
        "sqlite",
        (Edit(CODEC, 'decode_tensor(anchor.last_output, "last_output") if', '0 * decode_tensor(anchor.last_output, "last_output") if'),),
    ),
    Mutation(
        "no fence: the store saves whatever the epoch",
        "redis",
        (Edit("sessions/stores/redis_scripts.py", "  if kept[1] ~= ARGV[at + 1] or kept[2] ~= ARGV[1] or late then\n", "  if false then\n"),),
    ),
    Mutation(
        "SYNC answers before it is saved",
        "sqlite",
        (Edit("sessions/calling.py", "            call.outbox.hold(lambda: self._keeper.secure(session, secured))\n", "            del secured\n"),),
    ),
    Mutation(
        "a rollback is not told", "sqlite", (Edit("sessions/residency.py", "rolled_back = snapshot.state.rolled_back or (", "rolled_back = False and ("),)
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the mutations, and return 0 where every one was found, and nothing where nothing was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.mutations", description=__doc__)
    parser.add_argument("--only", default="", help="those whose name has this")
    parser.add_argument("--scenario", default="", help="those of this one")
    parser.add_argument("--minutes", type=float, default=0.6)
    parser.add_argument("--sessions", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    chosen = [each for each in MUTATIONS if given.only in each.name and given.scenario in each.scenario]
    beside = [Mutation(f"none, {scenario}", scenario) for scenario in dict.fromkeys(each.scenario for each in chosen)]
    outcomes = {each.name: _try(each, given) for each in [*beside, *chosen]}
    for name, outcome in outcomes.items():
        print(f"{outcome:12} {name}")
    return 0 if chosen and all(outcome in {"found", "green"} for outcome in outcomes.values()) else 1


def _try(mutation: Mutation, given: argparse.Namespace) -> str:
    """Return found, not found or out of date; of none, green or red."""
    with tempfile.TemporaryDirectory(prefix="cellstate-mutation-") as folder:
        service = Path(folder) / "service"
        shutil.copytree(ROOT / "service", service, ignore=shutil.ignore_patterns("__pycache__"))
        try:
            for edit in mutation.edits:
                edit.apply(service)
        except NotFound as error:
            print(f"{mutation.name}: {error}", file=sys.stderr)
            return "out of date"
        command = [sys.executable, "-m", "tests.crash", "--scenario", mutation.scenario, "--service", str(service), "--first"]
        command += ["--minutes", str(given.minutes), "--sessions", str(given.sessions), "--seed", str(given.seed)]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    told = [line for line in ended.stdout.splitlines() if line.startswith("WRONG") and any(word in line for word in mutation.finds)]
    print(f"-- {mutation.name}: exit {ended.returncode}; {told[0] if told else ended.stdout[-500:] + ended.stderr[-500:]}", flush=True)
    if not mutation.edits:
        return "red" if ended.returncode else "green"
    return "found" if ended.returncode == FAILED and told else "not found"


if __name__ == "__main__":
    sys.exit(main())
