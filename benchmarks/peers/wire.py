"""The contract of the two plain servers, as small as a recurrent model allows. Written as descriptors, so that no stub generator is needed.

service Stepper {
  rpc Step(StepRequest) returns (StepReply);
  rpc Stream(stream StepRequest) returns (stream StepReply);
  rpc Generate(GenerateRequest) returns (stream StepReply);
}
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "step.Stepper"
_FIELD = descriptor_pb2.FieldDescriptorProto
# Message: fields in the order of their numbers.
_MESSAGES: dict[str, dict[str, Any]] = {
    "StepRequest": {"token": _FIELD.TYPE_INT32, "session": _FIELD.TYPE_STRING},
    "StepReply": {"logits": _FIELD.TYPE_BYTES, "token": _FIELD.TYPE_INT32},
    "GenerateRequest": {"token": _FIELD.TYPE_INT32, "steps": _FIELD.TYPE_INT32},
}


def _message_classes() -> list[Any]:
    file = descriptor_pb2.FileDescriptorProto(name="step.proto", package="step", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            message.field.add(name=field, number=number, type=kind, label=_FIELD.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return [message_factory.GetMessageClass(pool.FindMessageTypeByName(f"step.{name}")) for name in _MESSAGES]


StepRequest, StepReply, GenerateRequest = _message_classes()
