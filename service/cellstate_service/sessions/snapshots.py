"""A session as it was, and the check that a model can take it. Its serialized form is the contract's `Snapshot`, written in `rpc/`."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from cellstate_service.engine.resident import TAIL_CHARACTERS, TAIL_TOKENS, ResidentState
from cellstate_service.errors import InvalidInput, Precondition, Reason
from cellstate_service.models.loading import LoadedModel
from cellstate_service.sessions.session import Durability, Session, SessionFacts


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A session's state at a position, stamped with what it belongs to."""

    name: str
    uid: str
    model: str
    model_digest: str
    numerics_id: str
    state: ResidentState
    durability: Durability = Durability.MEMORY
    idle_ttl_s: float | None = None
    expires_s: float | None = None
    created_s: float = 0.0
    used_s: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)


def snapshot_of(session: Session, state: ResidentState) -> Snapshot:
    """Return a session with a state that was read from it."""
    model = session.engine.model
    return Snapshot(
        name=session.name,
        uid=session.uid,
        model=model.name,
        model_digest=model.digest,
        numerics_id=model.numerics_id,
        state=state,
        durability=session.durability,
        idle_ttl_s=session.idle_ttl_s,
        expires_s=session.expires_s,
        created_s=session.created_s,
        used_s=session.used_s,
        labels=dict(session.labels),
    )


def stored_facts(snapshot: Snapshot, owner: str, *, busy: bool = False) -> SessionFacts:
    """Return what there is to know of a session that is in the store."""
    state = snapshot.state
    return SessionFacts(
        name=snapshot.name,
        uid=snapshot.uid,
        owner=owner,
        model=snapshot.model,
        model_digest=snapshot.model_digest,
        numerics_id=snapshot.numerics_id,
        position=state.position,
        seed=state.seed,
        durability=snapshot.durability,
        labels=snapshot.labels,
        created_s=snapshot.created_s,
        used_s=snapshot.used_s,
        expires_s=snapshot.expires_s or 0.0,
        idle_ttl_s=snapshot.idle_ttl_s,
        busy=busy,
        state_bytes=sum(tensor.nbytes for tensor in state.tensors.values()),
        safe_position=state.position if snapshot.durability is Durability.PERIODIC else None,
    )


@dataclass(frozen=True, slots=True)
class Allowances:
    """What an import may differ in."""

    other_numerics: bool = False
    other_model_digest: bool = False


#: No session gets there; above it, counting on would leave the 64 bits of the contract.
MAX_POSITION = 2**62


def check_fits(snapshot: Snapshot, model: LoadedModel, allowed: Allowances) -> None:
    """Check that a model can go on from a snapshot.

    Raises:
        Precondition: Another digest, numerics id or state schema.
    """
    if snapshot.model_digest != model.digest and not allowed.other_model_digest:
        raise Precondition(
            f"the snapshot is of another version of {snapshot.model!r} (digest {snapshot.model_digest[:12]}, loaded {model.digest[:12]}): "
            "set allow_other_model_digest to take it all the same",
            Reason.SNAPSHOT_MISMATCH,
            field="open.allow_other_model_digest",
        )
    if snapshot.numerics_id != model.numerics_id and not allowed.other_numerics:
        raise Precondition(
            f"the snapshot was computed under {snapshot.numerics_id!r}, this server computes under {model.numerics_id!r}: values may differ in their last "
            "bits; set allow_other_numerics to take it all the same",
            Reason.SNAPSHOT_MISMATCH,
            field="open.allow_other_numerics",
        )
    try:
        check_state(snapshot.state, model)
    except InvalidInput as error:
        raise Precondition(f"the snapshot's state does not fit the model: {error.message}", Reason.SNAPSHOT_MISMATCH, field="data") from error


def check_state(state: ResidentState, model: LoadedModel) -> None:
    """Check names, shapes and finiteness of state tensors, and the last output's size.

    Raises:
        InvalidInput: Naming the tensor.
    """
    if state.position > MAX_POSITION:
        raise InvalidInput(f"the position {state.position} is above {MAX_POSITION}", field="position")
    wanted = {spec.name: (spec.layers, spec.width) for spec in model.network.state}
    if set(state.tensors) != set(wanted):
        raise InvalidInput(
            f"state tensors {sorted(state.tensors)} are given, the model has {sorted(wanted)}", Reason.INVALID_TENSOR, field="initial_state.tensors"
        )
    for name, tensor in state.tensors.items():
        if tensor.shape != wanted[name]:
            raise InvalidInput(
                f"state tensor {name!r} has shape {list(tensor.shape)}, the model's is {list(wanted[name])}",
                Reason.INVALID_TENSOR,
                field="initial_state.tensors",
            )
        if not np.isfinite(tensor).all():
            raise InvalidInput(f"state tensor {name!r} holds NaN or infinity", Reason.NOT_FINITE, field="initial_state.tensors")
    output = state.last_output
    if output is not None and (output.shape != (model.network.output_size,) or not np.isfinite(output).all()):
        raise InvalidInput(f"the last output is not {model.network.output_size} finite numbers", Reason.INVALID_TENSOR, field="last_output")
    for name, held, limit in (
        ("stop_tail", state.tail_tokens, TAIL_TOKENS),
        ("stop_text_tail", state.tail_text, TAIL_CHARACTERS),
        ("text_context", state.text_context, TAIL_TOKENS),
        ("text_pending", state.text_pending, TAIL_TOKENS),
    ):
        if len(held) > limit:
            raise InvalidInput(f"{name} holds {len(held)}, at most {limit} are kept", field=name)
    tokens = (*state.tail_tokens, *state.text_context, *state.text_pending)
    vocabulary = model.network.output_size
    if any(not 0 <= token < vocabulary for token in tokens):
        raise InvalidInput(f"token ids are to be below {vocabulary}", Reason.TOKEN_OUT_OF_RANGE, field="text_context")
