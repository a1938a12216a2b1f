"""The filter of ListSessions: terms joined by AND."""

import re
from collections.abc import Callable

from cellstate_service.errors import InvalidInput
from cellstate_service.sessions.session import SessionFacts

_TERM = re.compile(r"""\s*(?:(?P<label>labels\.(?P<key>[A-Za-z0-9._/-]{1,63}))|(?P<field>model|busy))\s*=\s*(?:"(?P<text>[^"]*)"|(?P<word>true|false))\s*""")

MAX_CHARACTERS = 2048
Predicate = Callable[[SessionFacts], bool]


def _predicate(match: "re.Match[str]") -> Predicate | None:
    key, field, text, word = match["key"], match["field"], match["text"], match["word"]
    if key is not None and text is not None:
        return lambda session: session.labels.get(key) == text
    if field == "model" and text is not None:
        return lambda session: session.model == text
    if field == "busy" and word is not None:
        return lambda session: session.busy == (word == "true")
    return None


def parse_filter(text: str) -> Predicate:
    """Return the predicate of a filter such as `model="shakespeare" AND labels.user="7"`; an empty filter takes all.

    Raises:
        InvalidInput: It cannot be read.
    """
    if len(text) > MAX_CHARACTERS:
        raise InvalidInput(f"filter: {len(text)} characters, at most {MAX_CHARACTERS} are taken", field="filter")
    predicates: list[Predicate] = []
    for term in re.split(r"\sAND\s", text) if text.strip() else []:
        match = _TERM.fullmatch(term)
        predicate = _predicate(match) if match else None
        if predicate is None:
            raise InvalidInput('filter: terms are model="NAME", labels.KEY="VALUE" or busy=true|false, joined by AND', field="filter")
        predicates.append(predicate)
    return lambda session: all(predicate(session) for predicate in predicates)
