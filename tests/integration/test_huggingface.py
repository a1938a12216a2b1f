"""A model with a Hugging Face tokenizer, over the wire: text in, text out, the same however it is asked for."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from cellstate.v1.inference_pb2 import OneToManyRequest, OneToManyResponse
from cellstate.v1.types_pb2 import OUTPUT_FORM_TOKENS, Sequence
from tests.integration.conftest import StartServer
from tests.integration.serving import Served
from tests.integration.stubs import Stubs, generation, on_model, on_session, options, text
from tests.models_on_disk import write_recurrent

CORPUS = ["to be or not to be, that is the question", "naïve café, 日本語 and 🙂 smiles", "the quick brown fox jumps over the lazy dog"]


@pytest.fixture
def tokenizer() -> Tokenizer:
    """A byte-level BPE of a few merges: most characters beyond ASCII take several tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return made


@pytest.fixture
async def served(tokenizer: Tokenizer, tmp_path: Path, start_server: StartServer) -> AsyncIterator[Served]:
    folder = tmp_path / "models" / "pieces"
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_recurrent(folder, name="pieces", vocabulary_size=tokenizer.get_vocab_size(), tokenizer={"kind": "huggingface", "file": "tokenizer.json"}, seed=3)
    app = await start_server(models=folder.parent)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{app.port}") as channel:
        yield Served(app, Stubs(channel), folder.parent)


async def generated(served: Served, request: OneToManyRequest) -> tuple[str, list[int], OneToManyResponse]:
    """All text, all token ids, and the last message."""
    written, ids, last = "", [], OneToManyResponse()
    async for last in served.stubs.inference.OneToMany(request):
        written += last.output.values.text
        ids += last.output.values.tokens.ids
    return written, ids, last


async def test_text_equals_the_decoded_tokens(served: Served, tokenizer: Tokenizer) -> None:
    prompt = "naïve 🙂 to be"
    request = OneToManyRequest(target=on_model("pieces"), input=text(prompt), generation=generation(200, seed=7))
    written, _, last = await generated(served, request)
    request.output.CopyFrom(options(OUTPUT_FORM_TOKENS))
    _, ids, _ = await generated(served, request)

    encoded = tokenizer.encode(prompt).ids
    assert last.completion.consumed_steps == len(encoded)
    assert len(ids) == 200
    whole = tokenizer.decode(encoded + ids)[len(prompt) :]
    assert whole.startswith(written)
    assert len(whole) - len(written) <= 4  # bytes of a character that is not complete yet are held back


async def test_two_calls_write_what_one_call_writes(served: Served) -> None:
    """Also where the cut falls into a character: its bytes wait in the session."""
    await served.create("pieces", "one", seed=5)
    whole, _, _ = await generated(served, OneToManyRequest(target=on_session("one"), input=Sequence(text="to"), generation=generation(120)))
    await served.create("pieces", "two", seed=5)
    pieces = ""
    for number, steps in enumerate((1, 2, 3, 50, 1, 63)):
        request = OneToManyRequest(target=on_session("two"), generation=generation(steps))
        if number == 0:
            request.input.text = "to"
        pieces += (await generated(served, request))[0]
    assert pieces == whole
    assert (await served.get("one")).state_digest == (await served.get("two")).state_digest
