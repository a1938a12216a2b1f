"""Round trips, the incremental law, and text that a tokenizer cannot take."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from cellstate_service.models.errors import ModelError, TextNotEncodable
from cellstate_service.models.huggingface import CONTEXT_IDS, HELD_IDS, HuggingFaceTokenizer
from cellstate_service.models.tokenizers import ByteTokenizer, CharacterTokenizer, Tokenizer

CHARACTERS = "\x00\n abcé漢😀\u0301"
CORPUS = ["the cat sat on the mat, and the dog — naïve and 漢字 — sat on the cat 😀😀", "that that is is that that is not is not", "\ufffd"]


def byte_level_bpe() -> tokenizers.Tokenizer:
    """Train a small byte-level BPE, as GPT-2's is built."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def metaspace_bpe() -> tokenizers.Tokenizer:
    """Train a small BPE without byte fallback, whose words carry their leading space, as SentencePiece's do."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=120, show_progress=False))
    return tokenizer


def loaded(tokenizer: tokenizers.Tokenizer) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(tokenizer.to_str().encode(), Path("tokenizer.json"))


BPE, METASPACE, BYTES, BY_CHARACTER = loaded(byte_level_bpe()), loaded(metaspace_bpe()), ByteTokenizer(), CharacterTokenizer(CHARACTERS)

unicode_text = st.text(st.characters(exclude_categories=("Cs",)))
words = st.lists(st.sampled_from(["the", "cat", "sat", "naïve", "漢字", "that", "dog"]), min_size=1).map(" ".join)


def feed_all(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    decoder = tokenizer.decoder()
    return [decoder.feed(int(token)) for token in ids]


@given(st.text(CHARACTERS))
def test_characters_round_trip(text: str) -> None:
    ids = BY_CHARACTER.encode(text)
    assert ids.dtype == np.int64
    assert [CHARACTERS[token] for token in ids] == list(text) == feed_all(BY_CHARACTER, ids)
    assert BY_CHARACTER.decode(ids) == text


@given(unicode_text)
def test_bytes_round_trip(text: str) -> None:
    ids = BYTES.encode(text)
    assert ids.dtype == np.int64
    assert bytes(ids.tolist()) == text.encode()
    assert BYTES.decode(ids) == text == "".join(feed_all(BYTES, ids))


@given(unicode_text)
def test_byte_level_bpe_round_trip(text: str) -> None:
    ids = BPE.encode(text)
    assert ids.dtype == np.int64
    assert BPE.decode(ids) == text
    decoder = BPE.decoder()
    fed = "".join(decoder.feed(int(token)) for token in ids)
    # A literal U+FFFD at the end may still be the start of another character.
    assert text.startswith(fed)
    assert set(text[len(fed) :]) <= {"\ufffd"} or len(decoder.snapshot()[1]) <= HELD_IDS
    if not text.endswith("\ufffd"):
        assert fed == text


@given(words)
def test_metaspace_round_trip(text: str) -> None:
    ids = METASPACE.encode(text)
    assert METASPACE.decode(ids) == text == "".join(feed_all(METASPACE, ids))


@given(st.lists(st.integers(0, 299)))
def test_bytes_come_as_soon_as_they_are_whole(ids: list[int]) -> None:
    decoder = BYTES.decoder()
    fed = "".join(decoder.feed(token) for token in ids)
    _, pending = decoder.snapshot()
    assert fed + BYTES.decode(pending) == BYTES.decode(ids)
    assert len(pending) <= 3


@given(st.lists(st.integers(0, BPE.vocabulary_size - 1)))
def test_any_byte_level_tokens_come_as_their_text(ids: list[int]) -> None:
    decoder = BPE.decoder()
    fed = "".join(decoder.feed(token) for token in ids)
    context, pending = decoder.snapshot()
    rest = BPE.decode(context + pending)[len(BPE.decode(context)) :]
    assert fed + rest == BPE.decode(ids)
    assert len(context) <= CONTEXT_IDS + HELD_IDS
    assert len(pending) <= 2 * HELD_IDS


@given(st.data())
def test_snapshot_and_restore_continue_in_another_decoder(data: st.DataObject) -> None:
    tokenizer: Tokenizer = data.draw(st.sampled_from([BPE, METASPACE, BYTES, BY_CHARACTER]))
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocabulary_size - 1), max_size=20))
    cut = data.draw(st.integers(0, len(ids)))
    first, second = tokenizer.decoder(), tokenizer.decoder()
    head = [first.feed(token) for token in ids[:cut]]
    second.restore(*first.snapshot())
    assert head + [second.feed(token) for token in ids[cut:]] == feed_all(tokenizer, ids)
    second.reset()
    assert [second.feed(token) for token in ids] == feed_all(tokenizer, ids)


def test_consumed_inputs_are_the_context_of_what_follows() -> None:
    prompt, following = METASPACE.encode("the cat sat on the"), METASPACE.encode("the cat")
    decoder = METASPACE.decoder()
    decoder.context(prompt)
    assert "".join(decoder.feed(int(token)) for token in following) == " the cat"
    assert all(isinstance(token, int) for token in decoder.snapshot()[0])


@pytest.mark.parametrize("tokenizer", [BPE, BYTES])
def test_consumed_inputs_drop_what_is_pending(tokenizer: Tokenizer) -> None:
    first, *_ = tokenizer.encode("€") if tokenizer is BYTES else [BPE.encode("\u0416")[0]]
    decoder = tokenizer.decoder()
    assert decoder.feed(int(first)) == ""
    decoder.context(tokenizer.encode("cat"))
    assert "".join(decoder.feed(int(token)) for token in tokenizer.encode("dog")) == "dog"


def test_special_tokens_have_no_text() -> None:
    end = 0
    assert BPE.decode([end, *BPE.encode("cat"), end]) == "cat" == "".join(feed_all(BPE, [end, *BPE.encode("cat"), end]))


@pytest.mark.parametrize(("text", "character", "index"), [("abz", "z", 2), ("z", "z", 0), ("ab\U0010ffff", "\U0010ffff", 2), ("\ud800", "\ud800", 0)])
def test_unknown_character_is_named(text: str, character: str, index: int) -> None:
    with pytest.raises(TextNotEncodable, match=f"at index {index}") as caught:
        BY_CHARACTER.encode(text)
    assert (caught.value.character, caught.value.index) == (character, index)


@pytest.mark.parametrize("tokenizer", [BPE, BYTES])
def test_lone_surrogate_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(TextNotEncodable, match="at index 2"):
        tokenizer.encode("ab\ud800")


def test_character_that_a_vocabulary_would_drop_is_named() -> None:
    with pytest.raises(TextNotEncodable) as caught:
        METASPACE.encode("the Ж cat")
    assert (caught.value.character, caught.value.index) == ("Ж", 4)


def test_truncation_padding_and_added_tokens_of_the_file_do_not_apply() -> None:
    tokenizer = byte_level_bpe()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    tokenizer.post_processor = processors.TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 0)])
    text = "the cat sat on the mat"
    assert loaded(tokenizer).encode(text).tolist() == BPE.encode(text).tolist()


def test_a_normalizer_may_drop_characters() -> None:
    tokenizer = byte_level_bpe()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    normalizing = loaded(tokenizer)
    assert normalizing.decode(normalizing.encode("e\u0301a")) == "ea"


@pytest.mark.parametrize("data", [b"", b"{}", b"[1", b"\xff\xfe", b'{"model": {"type": "BPE"}}'])
def test_unreadable_tokenizer_file_is_named(data: bytes) -> None:
    with pytest.raises(ModelError, match=r"^models/x/tokenizer\.json: no tokenizer\.json that can be read"):
        HuggingFaceTokenizer(data, Path("models/x/tokenizer.json"))


@pytest.mark.parametrize("tokenizer", [BY_CHARACTER, BYTES, BPE])
def test_empty_text_has_no_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("").shape == (0,)
    assert tokenizer.decode([]) == ""


def test_long_text_is_encoded_at_once() -> None:
    text = "abc \n" * 400_000
    started = time.process_time()
    assert len(BY_CHARACTER.encode(text)) == len(BYTES.encode(text)) == len(text)
    assert time.process_time() - started < 1.0
