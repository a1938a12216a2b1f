"""The law of the engine's core: whatever is asked in whatever order, every accepted request ends exactly once."""

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from cellstate_service.engine.core import EngineCore
from cellstate_service.engine.outbox import Outbox
from cellstate_service.engine.request import Emit, Event, Failed, Form, Outputs, Request, Sampling, StopTaken
from cellstate_service.errors import Aborted
from cellstate_service.models.loading import LoadedModel
from tests.unit.engine.asking import consume, generating, outbox, positions, resident_of
from tests.unit.engine.conftest import FakeClock, breakable, new_core

COMMANDS = st.lists(
    st.tuples(
        st.sampled_from(
            ["consume", "generate", "answer", "stop", "wrong", "open", "cancel", "fail", "release", "late", "step", "step", "step", "break", "take", "tick"]
        ),
        st.integers(0, 3),
        st.integers(1, 7),
    ),
    max_size=70,
)


class Driver:
    """Drives a core as engine and calls would, and knows what every call must be told."""

    def __init__(self, model: LoadedModel, clock: FakeClock, breaks: Callable[[], None]) -> None:
        self.core = new_core(model, clock, max_batch_rows=2, slots=3)
        self.model, self.clock, self.breaks = model, clock, breaks
        self.residents = [resident_of(model, seed) for seed in range(4)]
        self.boxes = [outbox(window=3) for _ in range(4)]
        self.owed: dict[Outbox, list[str]] = {box: [] for box in self.boxes}
        self.told: dict[Outbox, list[Event]] = {box: [] for box in self.boxes}
        self.dropped: set[Outbox] = set()
        self.answered: set[Outbox] = set()  # asked for the last output again

    def do(self, command: str, number: int, size: int) -> None:
        resident, box = self.residents[number], self.boxes[number]
        if command in {"consume", "generate", "answer", "late", "wrong"}:
            self.submit(command, number, size)
        elif command == "stop":
            self.owed[box].append("stop")
            self.core.stop_generation(resident, box)
        elif command in {"cancel", "fail"}:
            self.core.drop(resident, box, Aborted("test") if command == "fail" else None)
            self.dropped.add(box)
        elif command == "open":
            self.core.drop(resident, box)
            self.dropped.add(box)
            self.renew(number)
        elif command == "release":
            self.core.release(resident)
            self.dropped.add(box)
            self.residents[number] = resident_of(self.model, number)
            self.renew(number)
        elif command == "take":
            self.deliver(number)
        elif command == "tick":
            self.clock.time_s += size
        elif command == "break":
            self.breaks()
        else:
            self.core.step()

    def renew(self, number: int) -> None:
        self.boxes[number] = outbox(window=3)
        self.owed[self.boxes[number]] = []
        self.told[self.boxes[number]] = []

    def submit(self, command: str, number: int, size: int) -> None:
        box = self.boxes[number]
        request = {
            "consume": lambda: consume(box, *range(size)),
            "late": lambda: consume(box, *range(size), deadline_s=self.clock.time_s + size),
            "generate": lambda: generating(box, size, sampling=Sampling(temperature=0)),
            "answer": lambda: Request(box, emit=Emit.LAST, form=Form.LOGITS),
            "wrong": lambda: consume(box, 1, position=10_000),
        }[command]()
        if command == "answer":
            self.answered.add(box)
        self.owed[box].append("generate" if command == "generate" else "consume")
        self.core.accept(self.residents[number], request)

    def deliver(self, number: int) -> None:
        """Hand all events over, as the loop does, and let one reader take what it has."""
        for box, event in taken_pairs(self.core):
            self.told[box].append(event)
        box = self.boxes[number]
        box.taken = box.sent
        if box.paused:
            self.core.make_ready(self.residents[number])

    def finish(self) -> None:
        for _ in range(1000):
            for number in range(4):
                self.deliver(number)
            if not self.core.has_work:
                return
            self.core.step()
        raise AssertionError("work goes on without end")

    def check(self) -> None:
        for box, events in self.told.items():
            endings = [event for event in events if not isinstance(event, Outputs)]
            failures = [event for event in endings if isinstance(event, Failed)]
            kinds = [
                "stop" if isinstance(event, StopTaken) else "generate" if event.generates else "consume" for event in endings if not isinstance(event, Failed)
            ]
            owed = self.owed[box]
            assert len(failures) <= 1
            assert not failures or events[-1] is failures[0], "something came after the error"
            assert kinds == owed[: len(kinds)], "ended out of order"
            if not failures and box not in self.dropped:
                assert len(kinds) == len(owed), "a request never ended"
            steps = positions(events)
            assert steps == sorted(steps), "steps came out of order"
            assert box in self.answered or len(set(steps)) == len(steps), "a step was repeated"
        for resident in self.residents:
            assert not resident.requests


def taken_pairs(core: EngineCore) -> list[tuple[Outbox, Event]]:
    events, core.events = core.events, []
    return events


@settings(max_examples=100)
@given(commands=COMMANDS)
def test_every_accepted_request_ends_exactly_once(tokens_model: LoadedModel, commands: list[tuple[str, int, int]]) -> None:
    model, program = breakable(tokens_model)
    driver = Driver(model, FakeClock(), lambda: program.breaks.add("advance"))
    for command in commands:
        driver.do(*command)
    driver.finish()
    driver.check()
