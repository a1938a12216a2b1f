"""Loading a model folder: manifest, weights and tokenizer are read once, checked against each other, prepared and tried out."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellstate_service.models.errors import ModelError, TextNotEncodable
from cellstate_service.models.files import read_model_file
from cellstate_service.models.huggingface import HuggingFaceTokenizer
from cellstate_service.models.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, Dtype, Manifest, parse_manifest
from cellstate_service.models.networks import Network, build_network, tensor_shapes
from cellstate_service.models.numerics import check_numerics
from cellstate_service.models.sections import BytesChoice, CharactersChoice, TokensInput
from cellstate_service.models.tokenizers import ByteTokenizer, CharacterTokenizer, Tokenizer
from cellstate_service.models.weights import read_tensors

WEIGHTS_FILE = "weights.safetensors"
MAX_TOKENIZER_BYTES = 256 << 20

StartValue = int | NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model, ready to step.

    Attributes:
        name: Its name.
        manifest: What it declares.
        network: Computes a step.
        tokenizer: Text to token ids and back, where it has one.
        digest: SHA-256 of manifest, weights and tokenizer, in hexadecimal.
        numerics_id: What its values depend on besides model and inputs.
        parameters: Number of parameters.
        loaded_at: When.
        batch_invariant: Its values do not depend on who shares the batch, as the self-check confirmed.
        batch_invariant_reason: Why not, where they do.
        start_value: What generation begins with at position 0: a token id, or float32 [features] in model units, or None.
    """

    name: str
    manifest: Manifest
    network: Network
    tokenizer: Tokenizer | None
    digest: str
    numerics_id: str
    parameters: int
    loaded_at: datetime
    batch_invariant: bool
    batch_invariant_reason: str
    start_value: StartValue

    @property
    def generates(self) -> bool:
        """Its output can be its next input."""
        return self.manifest.generates

    @property
    def state_bytes(self) -> int:
        """Bytes of one session's state tensors."""
        return sum(4 * spec.layers * spec.width for spec in self.network.state)


def load_model(folder: Path, dtype: Dtype | None = None) -> LoadedModel:
    """Read, check and prepare the model in `folder`. Takes as long as reading, packing and a few steps take: not for the event loop's thread.

    Args:
        folder: Of the model.
        dtype: What matrix products are computed in, where that is not what the manifest says.

    Raises:
        ModelError: Something fails its checks; the message names file and key or tensor.
    """
    manifest_path, weights_path = folder / MANIFEST_FILE, folder / WEIGHTS_FILE
    manifest_bytes = read_model_file(manifest_path, MAX_MANIFEST_BYTES)
    manifest = parse_manifest(manifest_bytes, manifest_path)
    if dtype is not None:
        manifest = manifest.model_copy(update={"dtype": dtype})
    tokenizer, tokenizer_bytes = _load_tokenizer(manifest, folder)
    start_value = _start_value(manifest, tokenizer, manifest_path)
    weights_bytes = read_model_file(weights_path)
    tensors = read_tensors(weights_bytes, tensor_shapes(manifest), weights_path)
    network = build_network(manifest, tensors)
    vocabulary_size = manifest.input.vocabulary_size if isinstance(manifest.input, TokensInput) else None
    numerics = check_numerics(network, vocabulary_size, manifest.input.size)
    return LoadedModel(
        name=manifest.name,
        manifest=manifest,
        network=network,
        tokenizer=tokenizer,
        digest=_digest(manifest_bytes, weights_bytes, tokenizer_bytes),
        numerics_id=numerics.numerics_id,
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        loaded_at=datetime.now(UTC),
        batch_invariant=numerics.batch_invariant,
        batch_invariant_reason=numerics.reason,
        start_value=start_value,
    )


def _load_tokenizer(manifest: Manifest, folder: Path) -> tuple[Tokenizer | None, bytes]:
    """Return the manifest's tokenizer, and the bytes of its file where it has one."""
    choice = manifest.tokenizer
    if choice is None:
        return None, b""
    if isinstance(choice, CharactersChoice):
        return CharacterTokenizer(choice.characters), b""
    if isinstance(choice, BytesChoice):
        return ByteTokenizer(), b""
    path = folder / choice.file
    data = read_model_file(path, MAX_TOKENIZER_BYTES)
    tokenizer = HuggingFaceTokenizer(data, path)
    for side, values in (("input", manifest.input), ("output", manifest.output)):
        if values.kind == "tokens" and values.size < tokenizer.vocabulary_size:
            raise ModelError(path, "", f"{tokenizer.vocabulary_size} tokens for {side}.vocabulary_size {values.size}")
    return tokenizer, data


def _start_value(manifest: Manifest, tokenizer: Tokenizer | None, path: Path) -> StartValue:
    """Return the manifest's start value as an input of one step."""
    start = manifest.start
    if start is None or (isinstance(start, int) and isinstance(manifest.input, TokensInput)):
        return start
    if not isinstance(start, str):
        return np.array(start, dtype=np.float32).reshape(-1)
    if tokenizer is None:
        raise ModelError(path, "start", "text needs a tokenizer")
    try:
        ids = tokenizer.encode(start)
    except TextNotEncodable as error:
        raise ModelError(path, "start", str(error)) from None
    if len(ids) != 1:
        raise ModelError(path, "start", f"{len(ids)} tokens, exactly one is needed")
    return int(ids[0])


def _digest(*parts: bytes) -> str:
    """Return the SHA-256 of parts, each behind its length."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
