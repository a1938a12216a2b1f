"""The contract of stores, held by each of them: claims with epochs, records that only the holder writes, leases, graves, and the end of time."""

import asyncio
import time

import pytest

from cellstate_service.errors import Reason
from cellstate_service.sessions.stores.store import Claim, Grave, HeldError, Key, Record, Store, Write
from tests.unit.sessions.stores.conftest import LEASE_S, Rig

KEY, OTHER = Key("ada", "talk"), Key("bob", "talk")
every_kind = pytest.mark.parametrize("rig", ["memory", "sqlite", "redis"], indirect=True)
shared_kinds = pytest.mark.parametrize("rig", ["memory", "redis"], indirect=True)


def record(position: int = 1, uid: str = "u1", expires_s: float = 1e12) -> Record:
    return Record(uid, position, expires_s, bytes([position % 256]) * 100)


async def saved(store: Store, key: Key = KEY, position: int = 1) -> Claim:
    claim = await store.claim(key)
    assert await store.save([Write(key, claim.epoch, record(position))], durable=True) == set()
    return claim


@pytest.fixture
async def store(rig: Rig) -> Store:
    return await rig.open("one")


@pytest.fixture
async def second(rig: Rig, store: Store) -> Store:
    return await rig.open("two")


@every_kind
class TestClaims:
    async def test_what_was_never_there_is_claimed_with_nothing_and_nothing_is_missing(self, store: Store) -> None:
        claim = await store.claim(KEY)
        assert (claim.record, claim.clean) == (None, True)
        assert await store.find(KEY) is None

    async def test_every_claim_has_a_larger_epoch_than_those_before(self, store: Store) -> None:
        epochs = [(await store.claim(key)).epoch for key in (KEY, OTHER, KEY)]
        await store.release(KEY, epochs[-1])
        epochs.append((await store.claim(KEY)).epoch)
        await store.remove(KEY, epochs[-1], None)
        epochs.append((await store.claim(KEY)).epoch)
        assert epochs == sorted(set(epochs))

    async def test_what_was_given_back_is_clean_once(self, store: Store) -> None:
        first = await saved(store)
        await store.release(KEY, first.epoch)
        assert (await store.claim(KEY)).clean
        again = await store.claim(KEY)
        assert not again.clean, "the one before did not give it back"
        assert again.record == record(1)

    async def test_a_claim_that_was_given_back_unsaved_leaves_nothing(self, store: Store) -> None:
        await store.release(KEY, (await store.claim(KEY)).epoch)
        assert await store.names("ada") == []
        claim = await store.claim(KEY)
        assert (claim.record, claim.clean) == (None, True)

    async def test_claims_that_are_not_ones_own_any_more_are_told(self, store: Store) -> None:
        kept, released, again, removed = [await saved(store, Key("ada", f"s{number}")) for number in range(4)]
        await store.release(Key("ada", "s1"), released.epoch)
        await store.claim(Key("ada", "s2"))
        await store.remove(Key("ada", "s3"), removed.epoch, None)
        claims = {Key("ada", f"s{number}"): claim.epoch for number, claim in enumerate((kept, released, again, removed))}
        assert await store.lost({**claims, Key("ada", "never"): 1}) == {Key("ada", name) for name in ("s1", "s2", "s3", "never")}
        assert await store.lost({}) == set()


@every_kind
class TestRecords:
    async def test_a_record_comes_back_as_it_was_saved(self, store: Store) -> None:
        claim = await store.claim(KEY)
        written = Record("uid with spaces ü", 2**40, 1_700_000_000.123456, bytes(range(256)) * 50)
        assert await store.save([Write(KEY, claim.epoch, written)], durable=True) == set()
        assert await store.find(KEY) in (written, None), "its time has run out long ago, so it may be gone"
        lasting = Record(written.uid, written.position, 2e9 + 0.123456, written.data)
        assert await store.save([Write(KEY, claim.epoch, lasting)], durable=False) == set()
        assert await store.find(KEY) == lasting
        await store.release(KEY, claim.epoch)
        assert (await store.claim(KEY)).record == lasting

    async def test_an_empty_batch_is_nothing(self, store: Store) -> None:
        assert await store.save([], durable=True) == set()

    async def test_a_large_batch_is_stored_and_the_later_of_two_records_of_one_session_stays(self, store: Store) -> None:
        keys = [Key("ada", f"s{number:03}") for number in range(600)]
        epochs = [(await store.claim(key)).epoch for key in keys]
        data = bytes(12_000)
        writes = [Write(key, epoch, Record("u", 1, 1e12, data)) for key, epoch in zip(keys, epochs, strict=True)]
        assert await store.save([*writes, Write(keys[0], epochs[0], record(2))], durable=True) == set()
        assert await store.find(keys[0]) == record(2)
        assert await store.find(keys[-1]) == Record("u", 1, 1e12, data)
        assert await store.names("ada") == [key.name for key in keys]

    async def test_writes_under_a_claim_that_was_given_back_are_refused(self, store: Store) -> None:
        old = await saved(store)
        await store.release(KEY, old.epoch)
        assert await store.save([Write(KEY, old.epoch, record(2))], durable=False) == {KEY}
        new = await store.claim(KEY)
        assert new.record == record(1)
        assert await store.save([Write(KEY, old.epoch, record(3))], durable=False) == {KEY}
        assert not await store.remove(KEY, old.epoch, None)
        await store.release(KEY, old.epoch)
        assert await store.find(KEY) == record(1)
        assert await store.lost({KEY: new.epoch}) == set()

    async def test_a_session_that_was_made_again_is_not_written_by_who_had_the_first(self, store: Store) -> None:
        old = await saved(store, position=5)
        assert await store.remove(KEY, old.epoch, Grave(Reason.SESSION_CLOSED, 5))
        new = await store.claim(KEY)
        assert (new.record, new.clean) == (None, True)
        assert await store.save([Write(KEY, old.epoch, record(6))], durable=False) == {KEY}
        assert await store.find(KEY) is None

    async def test_of_a_batch_each_record_is_refused_or_stored_by_itself(self, store: Store) -> None:
        mine, lost = await store.claim(KEY), await store.claim(OTHER)
        await store.release(OTHER, lost.epoch)
        assert await store.save([Write(OTHER, lost.epoch, record(1)), Write(KEY, mine.epoch, record(2))], durable=True) == {OTHER}
        assert await store.find(KEY) == record(2)
        assert await store.find(OTHER) is None

    async def test_what_is_saved_at_once_is_all_stored(self, store: Store) -> None:
        keys = [Key("ada", f"s{number}") for number in range(200)]
        claims = await asyncio.gather(*(store.claim(key) for key in keys))
        saves = (store.save([Write(key, claim.epoch, record(3))], durable=True) for key, claim in zip(keys, claims, strict=True))
        assert await asyncio.gather(*saves) == [set()] * 200
        assert await asyncio.gather(*(store.find(key) for key in keys)) == [record(3)] * 200


@every_kind
class TestNames:
    async def test_owners_have_names_of_their_own(self, store: Store) -> None:
        for key in (KEY, OTHER, Key("ada", "other")):
            await saved(store, key)
        await store.claim(Key("ada", "not saved yet"))
        assert await store.names("ada") == ["other", "talk"]
        assert await store.names("bob") == ["talk"]
        assert await store.names("eve") == []

    async def test_no_owner_reaches_another_ones_by_odd_names(self, store: Store) -> None:
        keys = [Key("a:b", "c"), Key("a", "b:c"), Key("a%3Ab", "c"), Key("a", "b%3Ac"), Key("", "a:b:c"), Key("ü *?[]{}\n", "\x01ÿ"), Key("A", "b:c")]
        for position, key in enumerate(keys):
            await saved(store, key, position)
        for position, key in enumerate(keys):
            assert await store.find(key) == record(position)
        assert await store.names("a") == ["b%3Ac", "b:c"]
        assert await store.names("a:b") == ["c"]


@every_kind
class TestEnds:
    async def test_a_removed_session_is_gone_and_why_is_remembered(self, store: Store) -> None:
        claim = await saved(store, position=5)
        assert await store.remove(KEY, claim.epoch, Grave(Reason.SESSION_CLOSED, 5))
        assert await store.find(KEY) is None
        assert await store.names("ada") == []
        assert await store.grave(KEY) == Grave(Reason.SESSION_CLOSED, 5)
        assert await store.grave(OTHER) is None
        assert not await store.remove(KEY, claim.epoch, None)

    async def test_a_grave_is_not_seen_while_a_session_of_its_name_is_stored_and_goes_with_it_where_none_is_given(self, store: Store) -> None:
        claim = await saved(store, position=5)
        await store.remove(KEY, claim.epoch, Grave(Reason.SESSION_EVICTED, 5))
        claim = await store.claim(KEY)
        assert await store.grave(KEY) == Grave(Reason.SESSION_EVICTED, 5)
        await store.save([Write(KEY, claim.epoch, record(1))], durable=False)
        assert await store.grave(KEY) is None
        assert await store.remove(KEY, claim.epoch, None)
        assert await store.grave(KEY) is None

    async def test_what_has_run_out_and_nobody_holds_is_struck_out(self, rig: Rig, store: Store) -> None:
        now_s = rig.now_s or time.time()
        for key, expires_s in ((KEY, now_s + 0.2), (OTHER, now_s + 0.2), (Key("ada", "long"), now_s + 500)):
            claim = await store.claim(key)
            await store.save([Write(key, claim.epoch, record(9, expires_s=expires_s))], durable=False)
            if key != OTHER:
                await store.release(key, claim.epoch)
        assert await store.expire() == 0
        await rig.wait(0.4)
        assert await store.expire() == (0 if rig.kind == "redis" else 1)
        assert await store.find(KEY) is None
        assert await store.grave(KEY) == Grave(Reason.SESSION_EXPIRED, 9)
        assert await store.names("ada") == ["long"]
        assert await store.find(OTHER) is not None, "its holder decides"
        await rig.lapse(store)
        await store.expire()
        assert await store.find(OTHER) is not None, "nobody else took it"

    async def test_what_ran_out_while_it_was_held_can_be_given_back(self, rig: Rig, store: Store) -> None:
        now_s = rig.now_s or time.time()
        claim = await store.claim(KEY)
        await store.save([Write(KEY, claim.epoch, record(9, expires_s=now_s - 10_000))], durable=False)
        await store.release(KEY, claim.epoch)
        await store.expire()
        assert await store.find(KEY) is None
        assert await store.grave(KEY) == Grave(Reason.SESSION_EXPIRED, 9)


@pytest.mark.parametrize("rig", ["memory", "sqlite"], indirect=True)
async def test_graves_are_remembered_up_to_a_limit(store: Store) -> None:
    for number in range(5):
        claim = await saved(store, Key("ada", f"s{number}"))
        assert await store.remove(Key("ada", f"s{number}"), claim.epoch, Grave(Reason.SESSION_CLOSED, number))
    remembered = [await store.grave(Key("ada", f"s{number}")) for number in range(5)]
    assert remembered == [None, None, *(Grave(Reason.SESSION_CLOSED, number) for number in (2, 3, 4))]


@pytest.mark.parametrize("rig", ["sqlite"], indirect=True)
async def test_the_only_server_never_loses_its_lease_and_has_nobody_to_ask(rig: Rig, store: Store) -> None:
    claim = await saved(store)
    await rig.lapse(store)
    assert await store.renew(LEASE_S)
    assert await store.lost({KEY: claim.epoch}) == set()
    assert await store.ask("two", b"?", 1.0) is None


@shared_kinds
class TestSeveralServers:
    async def test_they_share_one_incarnation(self, rig: Rig, store: Store) -> None:
        assert await store.open(LEASE_S) == await (await rig.open("two")).open(LEASE_S)

    async def test_a_lease_keeps_others_off_while_it_is_renewed(self, rig: Rig, store: Store, second: Store) -> None:
        await saved(store)
        with pytest.raises(HeldError) as caught:
            await second.claim(KEY)
        assert (caught.value.holder, caught.value.for_s) == ("one", pytest.approx(LEASE_S, abs=5))
        assert await store.renew(LEASE_S)
        with pytest.raises(HeldError):
            await second.claim(KEY)
        assert await second.find(KEY) == record(1)

    async def test_what_was_given_back_can_be_taken_at_once_and_is_clean(self, store: Store, second: Store) -> None:
        first = await saved(store, position=3)
        await store.release(KEY, first.epoch)
        taken = await second.claim(KEY)
        assert (taken.record, taken.clean) == (record(3), True)
        assert taken.epoch > first.epoch

    async def test_whoever_paused_too_long_is_fenced_off(self, rig: Rig, store: Store, second: Store) -> None:
        old, kept = await saved(store), await saved(store, OTHER)
        await rig.lapse(store)
        new = await second.claim(KEY)
        assert (new.record, new.clean) == (record(1), False), "there may have been a newer state"
        assert await store.save([Write(KEY, old.epoch, record(2))], durable=False) == {KEY}
        assert not await store.remove(KEY, old.epoch, None)
        await store.release(KEY, old.epoch)
        assert not await store.renew(LEASE_S)
        assert await store.lost({KEY: old.epoch, OTHER: kept.epoch}) == {KEY}
        assert await store.renew(LEASE_S)
        with pytest.raises(HeldError):
            await store.claim(KEY)
        with pytest.raises(HeldError):
            await second.claim(OTHER)
        assert await second.save([Write(KEY, new.epoch, record(3))], durable=False) == set()

    async def test_an_unsaved_claim_of_a_server_that_died_is_taken_as_unclean(self, rig: Rig, store: Store, second: Store) -> None:
        await store.claim(KEY)
        await rig.lapse(store)
        taken = await second.claim(KEY)
        assert (taken.record, taken.clean) == (None, False)

    async def test_a_server_that_closed_its_store_holds_nothing(self, store: Store, second: Store) -> None:
        await saved(store)
        await store.close()
        taken = await second.claim(KEY)
        assert (taken.record, taken.clean) == (record(1), False)

    async def test_what_a_dead_server_held_ends_in_its_time(self, rig: Rig, store: Store, second: Store) -> None:
        now_s = rig.now_s or time.time()
        claim = await store.claim(KEY)
        await store.save([Write(KEY, claim.epoch, record(4, expires_s=now_s + 500))], durable=False)
        await rig.lapse(store)
        await second.expire()
        assert await second.find(KEY) is not None
        assert not await store.renew(LEASE_S)
        assert await store.lost({KEY: claim.epoch}) == set(), "it was not dead"
        assert await store.save([Write(KEY, claim.epoch, record(5))], durable=False) == set()

    async def test_they_ask_one_another(self, store: Store, second: Store) -> None:
        async def reverse(question: bytes) -> bytes:
            return question[::-1]

        store.answer(reverse)
        questions = [b"a\nb c\x00%d" % number for number in range(20)]
        assert await asyncio.gather(*(second.ask("one", question, 5.0) for question in questions)) == [question[::-1] for question in questions]
        assert await second.ask("one", b"", 5.0) == b""

    async def test_whoever_is_unknown_or_gone_gives_no_answer(self, store: Store, second: Store) -> None:
        async def echo(question: bytes) -> bytes:
            return question

        store.answer(echo)
        assert await second.ask("nobody", b"?", 5.0) is None
        await store.close()
        assert await second.ask("one", b"?", 5.0) is None

    async def test_whoever_takes_too_long_gives_no_answer(self, store: Store, second: Store) -> None:
        async def never(question: bytes) -> bytes:
            await asyncio.Event().wait()
            return question

        store.answer(never)
        assert await second.ask("one", b"?", 0.05) is None

    async def test_a_handler_that_fails_gives_no_answer_and_the_next_question_is_answered(self, store: Store, second: Store) -> None:
        async def fail_once(question: bytes) -> bytes:
            if question == b"fail":
                raise ValueError("cannot")
            return question

        store.answer(fail_once)
        assert await second.ask("one", b"fail", 0.3) is None
        assert await second.ask("one", b"go", 5.0) == b"go"
