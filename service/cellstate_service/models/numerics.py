"""What the bits of a model's values depend on, and whether they depend on the batch: found out by trying."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cellstate_service.models.linear import kernel_name
from cellstate_service.models.networks import DTYPES, Network

CHECKED_ROWS = 128
CHECKED_BATCHES = (2, 3, 7, 16, 17, 33, 64, CHECKED_ROWS)
CHECKED_CHUNKS = ((1, 5), (3, 4), (17, 3), (64, 2))
"""Rows and steps."""
CHECKED_ALONE = (0, 1, 2, 6, 15, 16, 31, 32, 47, 63, 64, CHECKED_ROWS - 1)


@dataclass(frozen=True, slots=True)
class Numerics:
    """What a self-check found.

    Attributes:
        numerics_id: Within one, a session's values have the same bits: torch build, instruction set, dtype, threads, kernel, and a digest of probed values.
        batch_invariant: A row's values did not depend on the batch.
        reason: Why that is not promised, or "".
    """

    numerics_id: str
    batch_invariant: bool
    reason: str


def check_numerics(network: Network, vocabulary_size: int | None, features: int) -> Numerics:
    """Step random rows alone and in batches, and compare the bits of outputs and new state. Holds for as many threads as torch has when it is called.

    Args:
        network: The network; nothing of it is changed.
        vocabulary_size: Where it takes token ids, those are below this; else None.
        features: Where it takes vectors, their length.
    """
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(0)
        if vocabulary_size is None:
            inputs = torch.randn(CHECKED_ROWS, features, generator=generator)
        else:
            inputs = torch.randint(vocabulary_size, (CHECKED_ROWS,), generator=generator)
        state = {spec.name: torch.rand(spec.layers, CHECKED_ROWS, spec.width, generator=generator) * 2 - 1 for spec in network.state}
        alone = {row: _step(network, inputs, state, slice(row, row + 1)) for row in CHECKED_ALONE}
        reason = _first_difference(network, inputs, state, alone) or _chunk_difference(network, inputs, state) or _threads_fault()
        return Numerics(numerics_id(_probe(alone), network.dtype), batch_invariant=not reason, reason=reason)


def numerics_id(probe: str, dtype: str) -> str:
    """Return the id under which values with the digest `probe` are computed here in a dtype."""
    instructions = torch.backends.cpu.get_cpu_capability().lower()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").lower()
    kernel = "-".join(filter(None, (kernel_name(DTYPES[dtype]), limit)))
    return f"torch-{torch.__version__}/{instructions}/{dtype}/threads-{torch.get_num_threads()}/{kernel}/probe-{probe}"


Stepped = dict[str, Tensor]


def _step(network: Network, inputs: Tensor, state: Mapping[str, Tensor], rows: slice) -> Stepped:
    """Step some of the rows; returns outputs [B, …] and state [B, …] by name, rows first."""
    outputs, new = network.step(inputs[rows], {name: tensor[:, rows].contiguous() for name, tensor in state.items()})
    return {"outputs": outputs} | {name: tensor.transpose(0, 1) for name, tensor in new.items()}


def _first_difference(network: Network, inputs: Tensor, state: Mapping[str, Tensor], alone: Mapping[int, Stepped]) -> str:
    """Return in words where a row in a batch first differs from the row alone, or ""."""
    for batch in CHECKED_BATCHES:
        together = _step(network, inputs, state, slice(batch))
        for row, single in alone.items():
            for name, values in single.items():
                if row < batch and not _same_bits(together[name][row], values[0]):
                    return f"{name} of a row computed alone and in a batch of {batch} differ"
    return ""


def _chunk_difference(network: Network, inputs: Tensor, state: Mapping[str, Tensor]) -> str:
    """Return in words where a chunk of steps taken at once first differs from the same steps taken one by one, or ""."""
    for rows, steps in CHECKED_CHUNKS:
        chunk = torch.stack([inputs.roll(-step, 0)[:rows] for step in range(steps)])
        now = network.flatten({name: tensor[:, :rows].contiguous() for name, tensor in state.items()})
        hidden, after = network.program.advance(chunk, now)
        together = [network.program.head(hidden)[-rows:], *after[-1]]
        for one in chunk:
            last, singly = network.program.advance(one.unsqueeze(0), now)
            now = singly[0]
        if not all(_same_bits(left, right) for left, right in zip(together, [network.program.head(last), *now], strict=True)):
            return f"{steps} steps of {rows} rows taken at once and one by one differ"
    return ""


def _threads_fault() -> str:
    """Return why several threads cannot promise equal bits: they cut large elementwise work at any element, which moves the tails of vectors into a row."""
    threads = torch.get_num_threads()
    return f"{threads} threads may share a row of a large batch; one thread keeps the bits" if threads > 1 else ""


def _same_bits(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left.contiguous().view(torch.int32), right.contiguous().view(torch.int32))


def _probe(alone: Mapping[int, Stepped]) -> str:
    """Return a digest of values, and of what a sampler computes from them: functions that round differently from one instruction set to the next."""
    digest = hashlib.sha256()
    for stepped in alone.values():
        outputs = stepped["outputs"].contiguous()
        for tensor in (*stepped.values(), outputs.log_softmax(dim=1), outputs.softmax(dim=1).cumsum(dim=1)):
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]
