"""ModelService: what is loaded. Models are loaded when the server starts; changing them at run time is not offered."""

from cellstate.v1 import model_pb2, model_pb2_grpc, types_pb2
from cellstate_service.errors import NotOffered
from cellstate_service.models.loading import LoadedModel
from cellstate_service.models.manifest import Manifest
from cellstate_service.models.registry import ModelRegistry
from cellstate_service.rpc.encode import encode_tensor, encode_time
from cellstate_service.rpc.interceptor import CallContext
from cellstate_service.rpc.paging import decode_page, encode_token

_CELLS = {
    "lstm": model_pb2.CELL_KIND_LSTM,
    "gru": model_pb2.CELL_KIND_GRU,
    "rnn_tanh": model_pb2.CELL_KIND_RNN_TANH,
    "rnn_relu": model_pb2.CELL_KIND_RNN_RELU,
    "feed_forward": model_pb2.CELL_KIND_FEED_FORWARD,
}
_MODES = {
    "one_to_one": model_pb2.MODE_ONE_TO_ONE,
    "many_to_one": model_pb2.MODE_MANY_TO_ONE,
    "one_to_many": model_pb2.MODE_ONE_TO_MANY,
    "many_to_many": model_pb2.MODE_MANY_TO_MANY,
}


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Tells of the models of a registry."""

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry

    async def ListModels(self, request: model_pb2.ListModelsRequest, context: CallContext) -> model_pb2.ListModelsResponse:  # type: ignore[override]
        """List the loaded models."""
        page = decode_page(request.page_size, request.page_token)
        models = [model for model in self._registry.list() if model.name > page.after]
        listed = models[: page.size]
        token = encode_token(listed[-1].name, "") if len(models) > page.size else ""
        return model_pb2.ListModelsResponse(models=[encode_model(model) for model in listed], next_page_token=token)

    async def GetModel(self, request: model_pb2.GetModelRequest, context: CallContext) -> model_pb2.GetModelResponse:  # type: ignore[override]
        """Read one model."""
        return model_pb2.GetModelResponse(model=encode_model(self._registry.get(request.name, "name")))

    async def LoadModel(self, request: model_pb2.LoadModelRequest, context: CallContext) -> model_pb2.LoadModelResponse:  # type: ignore[override]
        """Refuse: models are loaded at start."""
        raise NotOffered("models are loaded when the server starts: put the folder under its models directory and restart it")

    async def UnloadModel(self, request: model_pb2.UnloadModelRequest, context: CallContext) -> model_pb2.UnloadModelResponse:  # type: ignore[override]
        """Refuse: models are loaded at start."""
        raise NotOffered("models are loaded when the server starts: take the folder away and restart it")


def encode_model(model: LoadedModel) -> model_pb2.Model:
    """Return a model's message."""
    manifest = model.manifest
    message = model_pb2.Model(
        name=model.name,
        description=manifest.description,
        cell=_CELLS[manifest.cell],
        num_layers=manifest.num_layers,
        hidden_size=manifest.hidden_size,
        proj_size=manifest.proj_size,
        parameters=model.parameters,
        input=_signature(manifest.input, text=model.tokenizer is not None),
        output=_signature(manifest.output, text=model.tokenizer is not None),
        state=[model_pb2.StateSignature(name=spec.name, dtype=types_pb2.DATA_TYPE_FLOAT32, shape=[spec.layers, spec.width]) for spec in model.network.state],
        state_bytes=model.state_bytes,
        modes=[_MODES[mode] for mode in manifest.modes],
        generates=model.generates,
        digest=model.digest,
        numerics_id=model.numerics_id,
        batch_invariant=model.batch_invariant,
        batch_invariant_reason=model.batch_invariant_reason,
        dtype=types_pb2.DATA_TYPE_FLOAT32,
        load_time=encode_time(model.loaded_at.timestamp()),
    )
    if model.generates:
        message.defaults.CopyFrom(_defaults(manifest))
    start = model.start_value
    if isinstance(start, int):
        message.start.tokens.ids.append(start)
    elif start is not None:
        message.start.tensor.CopyFrom(encode_tensor(start[None]))
    return message


def _signature(values: object, *, text: bool) -> model_pb2.ValueSignature:
    tokens = values.kind == "tokens"  # type: ignore[attr-defined]
    names = () if tokens else (getattr(values, "labels", ()) or values.names)  # type: ignore[attr-defined]
    kind = model_pb2.ValueSignature.KIND_TOKENS if tokens else model_pb2.ValueSignature.KIND_NUMERIC
    return model_pb2.ValueSignature(kind=kind, size=values.size, text=tokens and text, names=names)  # type: ignore[attr-defined]


def _defaults(manifest: Manifest) -> model_pb2.GenerationDefaults:
    given = manifest.generation
    defaults = model_pb2.GenerationDefaults(max_steps=given.max_steps, max_steps_limit=given.max_steps_limit)
    if manifest.output.kind == "tokens":
        defaults.sampling.CopyFrom(types_pb2.Sampling(temperature=given.temperature, top_k=given.top_k, top_p=given.top_p))
    return defaults
