import hashlib
from pathlib import Path

import pytest

from cellstate_service.errors import Unauthenticated
from cellstate_service.rpc.auth import Authenticator, TokensFileError, load_tokens


def sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"# who may call\n\nada:{sha256('one')}\n  bob : {sha256('two').upper()}\nada:{sha256('three')}\n")
    return path


def test_everyone_is_anonymous_without_a_tokens_file() -> None:
    authenticator = Authenticator.from_file(None)

    assert authenticator.principal(None) == "anonymous"
    assert authenticator.principal([("authorization", "Bearer whatever")]) == "anonymous"


@pytest.mark.parametrize(("token", "owner"), [("one", "ada"), ("two", "bob"), ("three", "ada")])
def test_a_token_names_its_owner(tokens_file: Path, token: str, owner: str) -> None:
    authenticator = Authenticator.from_file(tokens_file)

    assert authenticator.principal([("user-agent", "x"), ("authorization", f"Bearer {token}")]) == owner
    assert authenticator.principal([("Authorization", f"bearer {token}".encode())]) == owner


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        [],
        [("authorization", "Bearer four")],
        [("authorization", "Bearer ")],
        [("authorization", "Basic one")],
        [("authorization", "one")],
        [("authorization", "Bearer one")] * 2,
    ],
)
def test_without_a_known_token_a_call_is_refused(tokens_file: Path, metadata: list[tuple[str, str]] | None) -> None:
    with pytest.raises(Unauthenticated) as caught:
        Authenticator.from_file(tokens_file).principal(metadata)

    assert caught.value.reason == "UNAUTHENTICATED"
    assert "four" not in caught.value.message


def test_the_hash_itself_is_no_token(tokens_file: Path) -> None:
    with pytest.raises(Unauthenticated):
        Authenticator.from_file(tokens_file).principal([("authorization", f"Bearer {sha256('one')}")])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ada", r"tokens:1: not of the form owner:sha256-hex"),
        ("# c\nada:secret", r"tokens:2: the hash of ada is not 64 hexadecimal digits"),
        (f":{sha256('a')}", r"tokens:1: the owner must be"),
        (f"a b:{sha256('a')}", r"tokens:1: the owner must be"),
        ("# nobody\n", r"tokens: holds no token"),
        (f"ada:{sha256('a')}\nbob:{sha256('a')}", r"tokens: the owners ada and bob share a token"),
    ],
)
def test_malformed_file_is_told_by_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(text)

    with pytest.raises(TokensFileError, match=said) as caught:
        load_tokens(path)
    assert "secret" not in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokensFileError, match=r"absent: cannot be read: No such file"):
        load_tokens(tmp_path / "absent")
