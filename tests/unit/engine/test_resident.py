"""A resident session's bookkeeping: positions, texts, and stop sequences that span steps and requests."""

from hypothesis import given
from hypothesis import strategies as st

from cellstate_service.engine.request import Generation
from cellstate_service.engine.resident import TAIL_CHARACTERS, TAIL_TOKENS, Resident
from cellstate_service.models.tokenizers import ByteTokenizer, CharacterTokenizer

CHARACTERS = "abc"


def writer() -> Resident:
    return Resident(seed=0, decoder=CharacterTokenizer(CHARACTERS).decoder())


def first_stop(resident: Resident, tokens: list[int], generation: Generation) -> tuple[int, object] | None:
    """Generate tokens until one completes a stop sequence; return how many it took, and which."""
    for count, token in enumerate(tokens, 1):
        stop = resident.stop_sequence(generation, resident.generated([token]))
        if stop is not None:
            return count, stop
    return None


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.text(CHARACTERS, min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_stop_text_is_found_at_the_step_that_completes_it(tokens: list[int], stops: list[str]) -> None:
    written = "".join(CHARACTERS[token] for token in tokens)
    ends = [end for end in range(1, len(written) + 1) if any(written[:end].endswith(stop) for stop in stops)]
    found = first_stop(writer(), tokens, Generation(99, stop_texts=tuple(stops)))
    assert found == ((ends[0], next(stop for stop in stops if written[: ends[0]].endswith(stop))) if ends else None)


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), min_size=1, max_size=4))
def test_stop_tokens_are_found_at_the_step_that_completes_them(tokens: list[int], stop: list[int]) -> None:
    ends = [end for end in range(len(stop), len(tokens) + 1) if tokens[end - len(stop) : end] == stop]
    assert first_stop(Resident(seed=0), tokens, Generation(99, stop_tokens=(tuple(stop),))) == ((ends[0], tuple(stop)) if ends else None)


def test_what_was_matched_already_does_not_match_again() -> None:
    """A stop that ended the last request may be its end, but not the next one's beginning."""
    resident, generation = writer(), Generation(99, stop_texts=("ab",))
    assert first_stop(resident, [0, 1], generation) == (2, "ab")
    assert first_stop(resident, [2, 0, 1], generation) == (3, "ab")


def test_a_stop_text_longer_than_one_step_is_kept_over_many_steps() -> None:
    stop = "abc" * (TAIL_CHARACTERS // 3)
    assert first_stop(writer(), [2] * 5 + [0, 1, 2] * (TAIL_CHARACTERS // 3), Generation(999, stop_texts=(stop,))) == (5 + len(stop), stop)


def test_the_longest_stop_tokens_are_kept_and_no_more() -> None:
    resident = Resident(seed=0)
    stop = tuple(range(TAIL_TOKENS))
    assert first_stop(resident, [7, 7, *stop], Generation(999, stop_tokens=(stop,))) == (TAIL_TOKENS + 2, stop)
    assert TAIL_TOKENS <= len(resident.tail_tokens or ()) <= 2 * TAIL_TOKENS


def test_an_input_starts_a_new_text() -> None:
    resident, generation = writer(), Generation(99, stop_texts=("ab",), stop_tokens=((0, 1),))
    assert first_stop(resident, [0], generation) is None
    resident.consumed(1, [2])
    assert first_stop(resident, [1], generation) is None
    assert resident.position == 3
    assert resident.has_output


def test_a_character_of_several_bytes_comes_when_it_is_complete() -> None:
    resident = Resident(seed=0, decoder=ByteTokenizer().decoder())
    generation = Generation(99, stop_texts=("é",))
    texts = [resident.generated([byte]) for byte in "xé".encode()]
    assert texts == ["x", "", "é"]
    assert resident.stop_sequence(generation, "é") == "é"


def test_a_step_that_completes_no_text_completes_no_stop_text() -> None:
    resident = Resident(seed=0, decoder=ByteTokenizer().decoder())
    generation = Generation(99, stop_texts=("x",))
    assert first_stop(resident, [ord("x")], generation) == (1, "x")
    assert resident.stop_sequence(generation, resident.generated(["é".encode()[0]])) is None


def test_steps_without_a_tokenizer_have_no_text() -> None:
    resident = Resident(seed=0)
    assert resident.generated([1, 2]) == ""
    assert resident.position == 2
    assert resident.tail_tokens == [1, 2]
