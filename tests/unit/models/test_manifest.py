"""What a manifest takes, and that every refusal names file and key."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cellstate_service.models.errors import ModelError
from cellstate_service.models.manifest import FeedForwardManifest, RecurrentManifest, load_manifest, parse_manifest
from tests.models_on_disk import CHARACTERS, write_feed_forward, write_recurrent

Edited = Callable[..., Path]
NUMERIC = {"input_kind": "numeric", "features": 2}


def refused(folder: Path) -> str:
    """Return what is said about the manifest in `folder`, without the file's name that it must begin with."""
    with pytest.raises(ModelError) as caught:
        load_manifest(folder)
    beginning = f"{folder / 'model.yaml'}: "
    assert str(caught.value).startswith(beginning)
    return str(caught.value).removeprefix(beginning)


def test_recurrent_manifest_reads_back(tmp_path: Path) -> None:
    manifest = load_manifest(write_recurrent(tmp_path / "tiny", num_layers=2, end_token=3))
    assert isinstance(manifest, RecurrentManifest)
    assert (manifest.name, manifest.cell, manifest.num_layers, manifest.hidden_size, manifest.end_token) == ("tiny", "lstm", 2, 16, 3)
    assert manifest.generation.max_steps == 200
    assert manifest.start == "\n"


def test_feed_forward_manifest_reads_back(tmp_path: Path) -> None:
    manifest = load_manifest(write_feed_forward(tmp_path / "flowers", hidden_sizes=[8, 20], labels=["a", "b"]))
    assert isinstance(manifest, FeedForwardManifest)
    assert (manifest.cell, manifest.num_layers, manifest.hidden_size, manifest.proj_size, manifest.generates) == ("feed_forward", 2, 20, 0, False)
    assert manifest.output.kind == "numeric"
    assert manifest.output.labels == ("a", "b")


@pytest.mark.parametrize(
    ("options", "modes"),
    [
        ({}, ("one_to_one", "many_to_one", "one_to_many", "many_to_many")),
        (NUMERIC, ("one_to_one", "many_to_one", "one_to_many", "many_to_many")),
        (NUMERIC | {"outputs": 3}, ("one_to_one", "many_to_one", "many_to_many")),
        ({"output_kind": "numeric"}, ("one_to_one", "many_to_one", "many_to_many")),
        ({"modes": ["many_to_one"]}, ("many_to_one",)),
    ],
)
def test_modes_default_to_what_makes_sense(tmp_path: Path, options: dict[str, Any], modes: tuple[str, ...]) -> None:
    assert load_manifest(write_recurrent(tmp_path / "model", **options)).modes == modes


def test_feed_forward_serves_one_to_one(tmp_path: Path) -> None:
    assert load_manifest(write_feed_forward(tmp_path / "model")).modes == ("one_to_one",)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"format": 2}, "format: Input should be 1, not 2"),
        ({"format": None}, "format: missing"),
        ({"name": "Upper"}, "name: String should match"),
        ({"name": "a" * 65}, "name: String should match"),
        ({"name": "../x"}, "name: String should match"),
        ({"kind": None}, "kind: missing"),
        ({"kind": "transformer"}, "kind: recurrent or feed_forward is needed, not 'transformer'"),
        ({"kind": ["recurrent"]}, "kind: recurrent or feed_forward is needed"),
        ({"cell": "xlstm"}, "cell: Input should be 'lstm', 'gru', 'rnn_tanh' or 'rnn_relu', not 'xlstm'"),
        ({"num_layers": 0}, "num_layers: Input should be greater than or equal to 1, not 0"),
        ({"num_layers": "2"}, "num_layers: Input should be a valid integer, not '2'"),
        ({"num_layers": True}, "num_layers: Input should be a valid integer, not True"),
        ({"hidden_size": 10**12}, "hidden_size: Input should be less than or equal to 65536, not 1000000000000"),
        ({"hiden_size": 3}, "hiden_size: unknown key"),
        ({"bias": 1}, "bias: Input should be a valid boolean, not 1"),
        ({"dropout": 1.5}, "dropout: Input should be less than or equal to 1"),
        ({"proj_size": 16}, "proj_size: 16 is not below hidden_size, 16"),
        ({"cell": "gru", "proj_size": 4}, "proj_size: cell gru takes none"),
        ({"input.kind": "pictures"}, "input: "),
        ({"input.vocabulary_size": 0}, "input.vocabulary_size: Input should be greater than or equal to 1, not 0"),
        ({"input.embedding_dim": None}, "input.embedding_dim: missing"),
        ({"input.features": 3}, "input.features: unknown key"),
        ({"output": None}, "output: missing"),
        ({"output": 7}, "output: "),
        ({"tokenizer.characters": "ab"}, f"tokenizer.characters: 2 characters for input.vocabulary_size {len(CHARACTERS)}"),
        ({"tokenizer.characters": "aba"}, "tokenizer.characters: 'a' again at index 2"),
        ({"tokenizer": {"kind": "bytes"}}, f"tokenizer: 256 bytes for input.vocabulary_size {len(CHARACTERS)}"),
        ({"tokenizer": {"kind": "huggingface", "file": "../tokenizer.json"}}, "tokenizer.file: String should match"),
        ({"tokenizer": {"kind": "huggingface", "file": "/etc/passwd"}}, "tokenizer.file: String should match"),
        ({"modes": ["one_to_some"]}, "modes.0: Input should be 'one_to_one'"),
        ({"modes": "one_to_one"}, "modes: Input should be a valid tuple"),
        ({"start": [1.0, 2.0]}, "start: text or a token id is needed"),
        ({"start": 1.5}, "start: text or a token id is needed"),
        ({"start": -1}, "start: -1 is not a token id below input.vocabulary_size"),
        ({"start": True}, "start: "),
        ({"tokenizer": None}, "start: text needs a tokenizer"),
        ({"end_token": 500}, f"end_token: 500 is not below output.vocabulary_size, {len(CHARACTERS)}"),
        ({"generation": {"max_steps": 10, "max_steps_limit": 5}}, "generation.max_steps: 10 is above max_steps_limit, 5"),
        ({"generation": {"temperature": -1.0}}, "generation.temperature: Input should be greater than or equal to 0"),
        ({"generation": {"top_p": 0.0}}, "generation.top_p: Input should be greater than 0"),
        ({"generation": {"temperature": float("nan")}}, "generation.temperature: "),
        ({"dtype": "float16"}, "dtype: Input should be 'float32' or 'bfloat16', not 'float16'"),
        ({"cell": "x", "format": 3, "extra": 1}, "format: Input should be 1, not 3; cell: Input should be"),
    ],
)
def test_token_model_refusals_name_the_key(edited: Edited, keys: dict[str, Any], message: str) -> None:
    assert refused(edited(keys)).startswith(message)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"input.normalization.mean": [1.0, 2.0, 3.0]}, "input.normalization.mean: 3 values for 2 features"),
        ({"output.normalization.scale": [1.0]}, "output.normalization.scale: 1 values for 2 features"),
        ({"input.normalization.scale": [1.0, 0.0]}, "input.normalization.scale.1: Input should be greater than or equal to 0.0000"),
        ({"input.normalization.mean": [1.0, float("inf")]}, "input.normalization.mean.1: "),
        ({"input.normalization.mean": ["1", 2.0]}, "input.normalization.mean.0: Input should be a valid number, not '1'"),
        ({"input.normalization.scale": None}, "input.normalization.scale: missing"),
        ({"input.names": ["only one"]}, "input.names: 1 values for 2 features"),
        ({"output.labels": ["a", "b"]}, "output.labels: classes are named only where activation is softmax"),
        ({"output.activation": "softmax"}, "output.normalization: not taken with activation softmax"),
        ({"output.normalization": None, "output.activation": "softmax", "output.labels": ["a"]}, "output.labels: 1 values for 2 features"),
        ({"output.features": 3, "output.normalization": None, "modes": ["one_to_many"]}, "modes: one_to_many needs an output that can be the next input"),
        ({"start": "text"}, "start: a number or a list of numbers is needed"),
        ({"start": 1.0}, "start: 1 values for 2 features"),
        ({"start": []}, "start: 0 values for 2 features"),
        ({"start": [1.0, "x"]}, "start: "),
        ({"tokenizer": {"kind": "bytes"}}, "tokenizer: neither input nor output is tokens"),
        ({"end_token": 0}, "end_token: 0 is not below output.vocabulary_size, which is not declared"),
    ],
)
def test_numeric_model_refusals_name_the_key(edited: Edited, keys: dict[str, Any], message: str) -> None:
    assert refused(edited(keys, **NUMERIC)).startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_sizes": [8, 0]}, "hidden_sizes.1: Input should be greater than or equal to 1, not 0"),
        ({"modes": ["many_to_one"]}, "modes: many_to_one needs a recurrent model"),
        ({"cell": "lstm"}, "cell: unknown key"),
        ({"activation": "swish"}, "activation: Input should be 'relu', 'tanh', 'sigmoid' or 'gelu', not 'swish'"),
    ],
)
def test_feed_forward_refusals_name_the_key(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    manifest = {"kind": "feed_forward", "input": {"kind": "numeric", "features": 1}, "output": {"kind": "numeric", "features": 1}}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"format": 1, "name": "x"} | manifest | options))
    assert refused(tmp_path).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a mapping is needed, not NoneType"),
        ("- 1\n- 2\n", "a mapping is needed, not list"),
        ("just text", "a mapping is needed, not str"),
        ("a: [1, 2", "line 1: "),
        ("a: 1\nb: 2\na: 3\n", "line 3: key 'a' is given twice"),
        ("a: !!python/object/apply:os.system ['true']", "line 1: could not determine a constructor"),
        ("a: !custom 1", "line 1: could not determine a constructor"),
        ("a: &x [1]\nb: *x\n", "line 2: aliases are not taken"),
        ("<<: {a: 1}", "line 1: could not determine a constructor"),
        ("1: 2", "line 1: key 1 is not text"),
        ("? [a]\n: 2", "line 1: key ['a'] is not text"),
        ("a: 1\n---\nb: 2\n", "line 2: but found another document"),
        ("a: \x00", "not YAML in UTF-8"),
        ("[" * 5000, "cannot be read as YAML (RecursionError)"),
    ],
)
def test_yaml_surprises_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "model.yaml").write_text(text)
    assert refused(tmp_path).startswith(message)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(ModelError, match=r"^models/x/model\.yaml: not YAML in UTF-8"):
        parse_manifest(b"a: \xff\xfe\x80", Path("models/x/model.yaml"))


def test_missing_file_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path) == "cannot be read (No such file or directory)"


def test_folder_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").mkdir()
    assert refused(tmp_path) == "not a plain file"


def test_manifest_is_bounded(tmp_path: Path) -> None:
    with (tmp_path / "model.yaml").open("wb") as file:
        file.truncate(1 << 40)
    assert refused(tmp_path) == "1099511627776 bytes, at most 8388608 are read"
