import re

from cellstate_service.errors import NotFound, Reason
from cellstate_service.sessions.tombstones import Tombstone, Tombstones

ALL = (Reason.SESSION_EXPIRED, Reason.SESSION_EVICTED, Reason.SESSION_CLOSED, Reason.SESSION_LOST)


def told(tombstones: Tombstones, owner: str, name: str) -> tuple[Reason, dict[str, str]]:
    error = tombstones.missing(owner, name, "target.session.name")
    assert isinstance(error, NotFound)
    assert error.field == "target.session.name"
    return error.reason, error.metadata


def test_the_owner_is_told_why_and_where() -> None:
    tombstones = Tombstones(10)
    for position, reason in enumerate(ALL):
        tombstones.bury("ada", reason.lower(), Tombstone(reason, position))

    for position, reason in enumerate(ALL):
        assert told(tombstones, "ada", reason.lower()) == (reason, {"position": str(position)})


def test_nobody_else_is_told() -> None:
    tombstones = Tombstones(10)
    tombstones.bury("ada", "mine", Tombstone(Reason.SESSION_CLOSED, 3))

    assert told(tombstones, "bob", "mine") == told(tombstones, "bob", "never-there") == (Reason.SESSION_NOT_FOUND, {})


def test_the_oldest_are_forgotten_beyond_the_limit() -> None:
    tombstones = Tombstones(3)
    for name in "abcd":
        tombstones.bury("ada", name, Tombstone(Reason.SESSION_EXPIRED, 0))
    tombstones.bury("ada", "b", Tombstone(Reason.SESSION_CLOSED, 1))
    tombstones.bury("ada", "e", Tombstone(Reason.SESSION_EXPIRED, 0))

    reasons = [told(tombstones, "ada", name)[0] for name in "abcde"]

    expired, none = Reason.SESSION_EXPIRED, Reason.SESSION_NOT_FOUND
    assert reasons == [none, Reason.SESSION_CLOSED, none, expired, expired]


def test_none_are_kept_where_none_may_be() -> None:
    tombstones = Tombstones(0)
    tombstones.bury("ada", "a", Tombstone(Reason.SESSION_EXPIRED, 0))

    assert told(tombstones, "ada", "a")[0] is Reason.SESSION_NOT_FOUND


def test_a_name_in_use_again_is_forgotten() -> None:
    tombstones = Tombstones(3)
    tombstones.bury("ada", "a", Tombstone(Reason.SESSION_EXPIRED, 0))

    tombstones.forget("ada", "a")
    tombstones.forget("ada", "never-there")

    assert told(tombstones, "ada", "a")[0] is Reason.SESSION_NOT_FOUND


def test_names_of_another_process_are_lost_and_of_this_one_never_were() -> None:
    first, second = Tombstones(3), Tombstones(3)
    name = first.new_name()

    assert re.fullmatch(r"s-[0-9a-f]{8}-[0-9a-f]{24}", name)
    assert name != first.new_name()
    assert told(first, "ada", name) == (Reason.SESSION_NOT_FOUND, {})
    assert told(second, "ada", name) == (Reason.SESSION_LOST, {})
    assert told(second, "ada", name + "0")[0] is Reason.SESSION_NOT_FOUND
