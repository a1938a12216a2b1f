"""A loaded model's figures, digest and start value, and the registry of models by name."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from cellstate_service.errors import NotFound, Reason
from cellstate_service.models.errors import ModelError
from cellstate_service.models.loading import LoadedModel, load_model
from cellstate_service.models.registry import ModelRegistry
from tests.models_on_disk import CHARACTERS, write_feed_forward, write_recurrent

Load = Callable[..., LoadedModel]
BPE = {"tokenizer": {"kind": "huggingface", "file": "tokenizer.json"}}


def write_tokenizer(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(["the cat sat"] * 5, trainers.BpeTrainer(vocab_size=262, initial_alphabet=alphabet, show_progress=False))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def test_figures_of_an_lstm(load_recurrent: Load) -> None:
    model = load_recurrent(num_layers=2, hidden_size=16)
    size = len(CHARACTERS)
    assert model.parameters == size * 8 + 64 * (8 + 16 + 2) + 64 * (16 + 16 + 2) + size * 16 + size
    assert model.state_bytes == 2 * 2 * 16 * 4
    assert model.generates
    assert model.tokenizer is not None
    assert model.tokenizer.vocabulary_size == size
    assert model.loaded_at.tzinfo is not None


def test_feed_forward_has_no_state(tmp_path: Path) -> None:
    model = load_model(write_feed_forward(tmp_path / "model"))
    assert (model.state_bytes, model.network.state, model.generates, model.start_value) == (0, (), False, None)


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({"start": "\n"}, CHARACTERS.index("\n")),
        ({"start": 7}, 7),
        ({"start": 0}, 0),
        ({"start": None}, None),
        ({"input_kind": "numeric", "start": 3}, [3.0]),
        ({"input_kind": "numeric", "features": 2, "start": [1, 2.5]}, [1.0, 2.5]),
    ],
)
def test_start_value_is_an_input_of_one_step(load_recurrent: Load, options: dict[str, Any], start: Any) -> None:
    value = load_recurrent(**options).start_value
    if isinstance(start, list):
        assert isinstance(value, np.ndarray)
        assert value.dtype == np.float32
        assert value.tolist() == start
    else:
        assert value == start


@pytest.mark.parametrize(
    ("start", "detail"), [("ab", "start: 2 tokens, exactly one is needed"), ("", "start: 0 tokens, exactly"), ("€", "start: the tokenizer has no")]
)
def test_start_text_must_be_one_token(tmp_path: Path, start: str, detail: str) -> None:
    with pytest.raises(ModelError, match=f"model.yaml: {detail}"):
        load_model(write_recurrent(tmp_path / "model", start=start))


def test_digest_covers_manifest_weights_and_tokenizer(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_tokenizer(folder)
    write_recurrent(folder, vocabulary_size=300, **BPE)
    digests = {load_model(folder).digest}
    assert digests == {load_model(folder).digest}
    (folder / "model.yaml").write_text((folder / "model.yaml").read_text() + "# a remark\n")
    digests.add(load_model(folder).digest)
    write_recurrent(folder, vocabulary_size=300, seed=1, **BPE)
    digests.add(load_model(folder).digest)
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + "\n")
    digests.add(load_model(folder).digest)
    assert len(digests) == 4
    assert {len(digest) for digest in digests} == {hashlib.sha256().digest_size * 2}


def test_tokenizer_file_encodes_and_decodes(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    expected = write_tokenizer(folder).encode("the cat sat").ids
    model = load_model(write_recurrent(folder, vocabulary_size=300, start="the", **BPE))
    assert model.tokenizer is not None
    assert model.tokenizer.encode("the cat sat").tolist() == expected
    assert model.tokenizer.decode(expected) == "the cat sat"
    assert model.start_value == model.tokenizer.encode("the")[0]


def test_tokenizer_larger_than_the_vocabulary_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_tokenizer(folder)
    with pytest.raises(ModelError, match=r"tokenizer\.json: 262 tokens for input\.vocabulary_size 261"):
        load_model(write_recurrent(folder, vocabulary_size=261, **BPE))


def test_missing_tokenizer_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json: cannot be read"):
        load_model(write_recurrent(tmp_path / "model", vocabulary_size=300, **BPE))


def test_bytes_tokenizer(load_recurrent: Load) -> None:
    model = load_recurrent(vocabulary_size=257, tokenizer={"kind": "bytes"}, end_token=256, start=256)
    assert model.tokenizer is not None
    assert model.tokenizer.encode("é").tolist() == [0xC3, 0xA9]
    assert model.start_value == 256


def test_registry_loads_every_folder_with_a_manifest(tmp_path: Path) -> None:
    write_recurrent(tmp_path / "b")
    write_feed_forward(tmp_path / "a")
    (tmp_path / "notes").mkdir()
    (tmp_path / "README.md").write_text("no model")
    registry = ModelRegistry()
    registry.load_folder(tmp_path)
    assert registry.names() == ("a", "b")
    assert [model.name for model in registry.list()] == ["a", "b"]
    assert registry.get("a").name == "a"


@pytest.mark.parametrize(("names", "loaded"), [((), "loaded: none"), (("b", "a"), "loaded: a, b")])
def test_unknown_model_is_not_found(tmp_path: Path, names: tuple[str, ...], loaded: str) -> None:
    for name in names:
        write_feed_forward(tmp_path / name)
    registry = ModelRegistry()
    registry.load_folder(tmp_path)
    with pytest.raises(NotFound, match=loaded) as caught:
        registry.get("c", field="target.model")
    assert (caught.value.reason, caught.value.field) == (Reason.MODEL_NOT_FOUND, "target.model")


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    write_feed_forward(tmp_path / "one", name="same")
    write_feed_forward(tmp_path / "two", name="same")
    with pytest.raises(ModelError, match=r"two/model\.yaml: name: 'same' is the model in .*one already"):
        ModelRegistry().load_folder(tmp_path)


def test_bad_model_folder_stops_loading(tmp_path: Path) -> None:
    write_recurrent(tmp_path / "bad", cell="gru", proj_size=4)
    with pytest.raises(ModelError, match=r"bad/model\.yaml: proj_size"):
        ModelRegistry().load_folder(tmp_path)


def test_missing_models_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere: cannot be read as a folder"):
        ModelRegistry().load_folder(tmp_path / "nowhere")
