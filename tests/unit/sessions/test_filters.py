from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellstate_service.errors import InvalidInput
from cellstate_service.sessions.filters import MAX_CHARACTERS, parse_filter


def session(model: str = "m", *, busy: bool = False, **labels: str) -> Any:
    return SimpleNamespace(model=model, labels=labels, busy=busy)


@pytest.mark.parametrize(
    ("text", "takes", "leaves"),
    [
        ('model="m"', session(), session("other")),
        ('labels.user="7"', session(user="7"), session(user="8")),
        ('labels.user="7"', session(user="7"), session()),
        ('labels.user=""', session(user=""), session()),
        ("busy=true", session(busy=True), session()),
        ("busy=false", session(), session(busy=True)),
        ('model="m" AND labels.a="b" AND busy=false', session(a="b"), session(a="b", busy=True)),
        ('  model  =  "m"   AND\tbusy = false ', session(), session("other")),
        ('labels.AND="AND"', session(AND="AND"), session()),
    ],
)
def test_a_filter_takes_what_all_its_terms_take(text: str, takes: Any, leaves: Any) -> None:
    predicate = parse_filter(text)

    assert predicate(takes)
    assert not predicate(leaves)


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_an_empty_filter_takes_all(text: str) -> None:
    assert parse_filter(text)(session())


@pytest.mark.parametrize(
    "text",
    [
        "model",
        "model=",
        "model=m",
        'model="m',
        'model="m""',
        "model=true",
        'busy="true"',
        "busy=maybe",
        'owner="ada"',
        'labels="a"',
        'labels.="a"',
        'labels.a b="c"',
        'model="a" OR model="b"',
        'model="a" AND',
        'AND model="a"',
        'model="a" and busy=true',
        'model="a"ANDbusy=true',
        " AND ".join(["busy=true"] * MAX_CHARACTERS),
    ],
)
def test_what_is_no_filter_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_filter(text)
    assert caught.value.field == "filter"


WORDS = st.text("ab.7/_-", min_size=1, max_size=4)


@given(st.dictionaries(WORDS, st.text("ab. 7", max_size=4), max_size=4), st.dictionaries(WORDS, st.text("ab. 7", max_size=4), max_size=4))
def test_labels_are_compared_one_by_one(wanted: dict[str, str], labels: dict[str, str]) -> None:
    predicate = parse_filter(" AND ".join(f'labels.{key}="{value}"' for key, value in wanted.items()))

    assert predicate(session(**labels)) == (wanted.items() <= labels.items())


@given(st.text(max_size=40) | st.lists(st.sampled_from(["model", "labels.a", "busy", "=", '"', "x", " AND ", "true"])).map("".join))
def test_any_text_is_a_filter_or_refused(text: str) -> None:
    try:
        predicate = parse_filter(text)
    except InvalidInput:
        return
    assert predicate(session()) in {True, False}
