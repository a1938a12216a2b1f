"""The runner: rows that fail without moving, pieces of input that give the bits of single steps, and one compiled call for all of it."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cellstate_service.engine.request import Sampling
from cellstate_service.engine.runner import Asked, Runner, Taken
from cellstate_service.engine.sampler import Draw, gather_draws
from cellstate_service.engine.state_pool import WorkingSet
from cellstate_service.models.loading import LoadedModel, load_model
from tests.models_on_disk import write_feed_forward, write_recurrent

ROWS = 4


@pytest.fixture(params=[1, 2, 3])
def parts(request: pytest.FixtureRequest) -> int:
    """In how many parts, each by a thread, a batch is computed."""
    return int(request.param)


@pytest.fixture(scope="module")
def steep(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A network that has no bound: a large enough input overflows."""
    path = write_recurrent(tmp_path_factory.mktemp("steep") / "model", cell="rnn_relu", input_kind="numeric", hidden_size=8, seed=2) / "weights.safetensors"
    weights = load_file(path)
    save_file(weights | {"rnn.weight_ih_l0": 1e4 * weights["rnn.weight_ih_l0"]}, path)
    return load_model(path.parent)


def working(rows: list[Tensor]) -> WorkingSet:
    return WorkingSet(rows, [], [], torch.empty(0, dtype=torch.int64))


def start(model: LoadedModel, rows: int = ROWS) -> list[Tensor]:
    return [*model.network.flatten(model.network.initial_state(rows)), torch.zeros(rows, model.network.output_size)]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


def test_what_steps_is_compiled(tokens_model: LoadedModel) -> None:
    assert Runner(tokens_model.network).compiled


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("bad", [{0: 0}, {1: 2, 3: 1}, {0: 2, 1: 0, 2: 1, 3: 2}, {}], ids=str)
def test_a_row_stands_before_the_step_that_was_not_finite(steep: LoadedModel, bad: dict[int, int], every: bool, parts: int) -> None:
    """Row to the step at which its input overflows, of three."""
    stepping, rows = Runner(steep.network), start(steep)
    inputs = torch.full((3, ROWS, 1), 2.0)
    for row, step in bad.items():
        inputs[step, row] = 3e38
    taken = stepping.consume(working(rows), inputs, every=every, parts=parts)
    assert taken.complete == (not bad)
    assert len(taken.outputs) == (3 if every else 1)
    if bad:
        assert taken.counts.tolist() == [bad.get(row, 3) for row in range(ROWS)]
    for row in range(ROWS):
        alone = [column[row : row + 1] for column in rows]
        for step in range(bad.get(row, 3)):
            alone = stepping.consume(working(alone), inputs[step : step + 1, row : row + 1], every=False).rows
        assert same([column[row : row + 1] for column in taken.rows], alone)


def test_not_a_number_stays_in_its_row_of_a_piece(steep: LoadedModel, parts: int) -> None:
    stepping = Runner(steep.network)
    inputs = torch.rand(5, ROWS, 1)
    clean = stepping.consume(working(start(steep)), inputs, every=True)
    inputs[2, 1] = float("nan")
    taken = stepping.consume(working(start(steep)), inputs, every=True, parts=parts)
    others = [0, 2, 3]
    assert taken.counts.tolist() == [5, 2, 5, 5]
    assert same([column[others] for column in taken.rows], [column[others] for column in clean.rows])
    assert torch.equal(taken.outputs[:, others], clean.outputs[:, others])


def test_generation_stops_each_row_where_it_stands(steep: LoadedModel, parts: int) -> None:
    """A closed loop that overflows after some steps, in one row."""
    stepping, rows = Runner(steep.network), start(steep)
    rows[-1] = torch.tensor([[0.5], [3e38], [1.0], [0.0]])
    taken = stepping.generate(working(rows), numbers(torch.ones(ROWS, dtype=torch.int64)), parts=parts)
    assert taken.counts.tolist() == [1, 0, 1, 1]
    assert same([column[1:2] for column in taken.rows], [column[1:2] for column in rows])


SAMPLING = [Sampling(0.0), Sampling(0.9), Sampling(1.3, top_k=3), Sampling(0.7, top_p=0.8)]
NOBODY = torch.empty(0, dtype=torch.int64)
GIVEN = torch.tensor([2, 5]), torch.tensor([1, 3])


def numbers(limits: Tensor) -> Asked:
    return Asked(limits, torch.empty(0, 1), NOBODY)


def tokens(limits: Tensor, draws: Any, given: tuple[Tensor, Tensor] = (NOBODY, NOBODY), **further: Any) -> Asked:
    return Asked(limits, *given, draws, **further)


def one_by_one(model: LoadedModel, steps: int) -> list[Taken]:
    stepping, rows, found = Runner(model.network), start(model), []
    for position in range(steps):
        draws = gather_draws([Draw(one, 5, position) for one in SAMPLING], model.network.output_size)
        found.append(stepping.generate(working(rows), tokens(torch.ones(ROWS, dtype=torch.int64), draws, logs=True)))
        rows = found[-1].rows
    return found


@pytest.mark.parametrize("limits", [[6, 6, 6, 6], [6, 1, 3, 6], [2, 2, 2, 5]], ids=str)
def test_several_steps_of_generation_are_the_same_as_one_by_one(tokens_model: LoadedModel, limits: list[int], parts: int) -> None:
    singly = one_by_one(tokens_model, 6)
    draws = gather_draws([Draw(one, 5, 0) for one in SAMPLING], tokens_model.network.output_size)
    taken = Runner(tokens_model.network).generate(working(start(tokens_model)), tokens(torch.tensor(limits), draws, logs=True), parts=parts)
    assert len(taken.fed) == max(limits)
    assert taken.complete == (min(limits) == max(limits))
    assert taken.complete or (taken.counts.tolist() == limits and not taken.failed.any())
    for row, limit in enumerate(limits):
        assert same([column[row] for column in taken.rows], [column[row] for column in singly[limit - 1].rows])
        assert [step[row] for step in taken.fed[:limit]] == [step.fed[0][row] for step in singly[:limit]]
        assert [step[row] for step in taken.logs[:limit]] == [step.logs[0][row] for step in singly[:limit]]


def test_rows_may_take_an_input_before_they_generate(tokens_model: LoadedModel, parts: int) -> None:
    stepping, rows = Runner(tokens_model.network), start(tokens_model)

    def draws(position: int) -> Any:
        return gather_draws([Draw(one, 5, position) for one in SAMPLING], tokens_model.network.output_size)

    together = stepping.generate(working(rows), tokens(torch.full((ROWS,), 4), draws(0), GIVEN, end_token=5), parts=parts)
    assert together.fed[0][GIVEN[1]].tolist() == [2, 5]
    singly = stepping.generate(working(rows), tokens(torch.ones(ROWS, dtype=torch.int64), draws(0), GIVEN, end_token=5))
    counts = [4] * ROWS if together.complete else together.counts.tolist()
    assert counts[3] > 1, "an end token that was given ends nothing"
    for step in range(1, 4):
        singly = stepping.generate(working(singly.rows), tokens(torch.ones(ROWS, dtype=torch.int64), draws(step), end_token=5))
        for row in range(ROWS):
            if counts[row] > step:
                assert together.fed[step][row] == singly.fed[0][row]


def test_no_row_steps_beyond_its_end_token(tokens_model: LoadedModel, parts: int) -> None:
    singly = one_by_one(tokens_model, 12)
    drawn = torch.stack([step.fed[0] for step in singly], 1).tolist()
    end = drawn[1][4]
    expected = [row.index(end) + 1 if end in row else 12 for row in drawn]
    draws = gather_draws([Draw(one, 5, 0) for one in SAMPLING], tokens_model.network.output_size)
    limits = torch.full((ROWS,), 12)
    taken = Runner(tokens_model.network).generate(working(start(tokens_model)), tokens(limits, draws, end_token=end), parts=parts)
    assert taken.counts.tolist() == expected
    for row, count in enumerate(expected):
        assert same([column[row] for column in taken.rows], [column[row] for column in singly[count - 1].rows])


@pytest.mark.parametrize("logs", [False, True])
def test_parts_of_a_batch_give_what_it_gives(tokens_model: LoadedModel, parts: int, logs: bool) -> None:
    """Rows that take an input, draw in each way, have limits of their own, and end, at places that fall into different parts."""
    stepping, rows, limits = Runner(tokens_model.network), start(tokens_model, 7), torch.tensor([3, 3, 3, 1, 3, 2, 3])
    given = torch.tensor([2, 5, 1]), torch.tensor([0, 3, 6])
    found = []
    for each in (1, parts):
        draws = gather_draws([Draw(SAMPLING[row % 4], row, 9) for row in range(7)], tokens_model.network.output_size)
        found.append(stepping.generate(working(rows), tokens(limits, draws, given, logs=logs, end_token=4), parts=each))
    whole, divided = found
    assert (whole.complete, len(whole.logs)) == (divided.complete, len(divided.logs)) == (False, 3 if logs else 0)
    assert whole.counts.tolist() == divided.counts.tolist()
    for name in ("rows", "fed", "logs"):
        assert same(getattr(whole, name), getattr(divided, name)), name
    assert torch.equal(whole.outputs, divided.outputs)


def test_a_closed_loop_that_overflows_stands_before_that_step(steep: LoadedModel, parts: int) -> None:
    stepping, rows = Runner(steep.network), start(steep)
    rows[-1] = torch.tensor([[0.5], [1e30], [1.0], [0.0]])
    alone, limits = [rows], torch.ones(ROWS, dtype=torch.int64)
    for _ in range(8):
        alone.append(stepping.generate(working(alone[-1]), numbers(limits)).rows)
    taken = stepping.generate(working(rows), numbers(8 * limits), parts=parts)
    assert taken.failed[1]
    for row, count in enumerate(taken.counts.tolist()):
        assert same([column[row] for column in taken.rows], [column[row] for column in alone[count]])


def test_a_network_without_state_steps_too(tmp_path_factory: pytest.TempPathFactory, parts: int) -> None:
    model = load_model(write_feed_forward(tmp_path_factory.mktemp("plain") / "model"))
    stepping = Runner(model.network)
    inputs = torch.randn(3, ROWS, model.manifest.input.size)
    inputs[1, 2] = float("inf")
    taken = stepping.consume(working(start(model)), inputs, every=True, parts=parts)
    assert taken.counts.tolist() == [3, 3, 1, 3]
    assert torch.equal(taken.outputs[2, 0], model.network.step(inputs[2], {})[0][0])
