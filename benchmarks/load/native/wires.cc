#include "wires.h"

#include <utility>

namespace caller {
namespace {

namespace v1 = cellstate::v1;

void require(const grpc::Status& status, const std::string& what) {
  if (!status.ok()) throw std::runtime_error(what + " failed: " + status.error_message());
}

}  // namespace

CellstateWire::CellstateWire(const std::shared_ptr<grpc::Channel>& channel, std::string model, std::size_t logits)
    : inference_(v1::InferenceService::NewStub(channel)),
      session_(v1::SessionService::NewStub(channel)),
      model_(std::move(model)),
      bytes_(sizeof(float) * logits) {}

// Greedy, without a session.
v1::OneToManyRequest CellstateWire::generation(std::uint32_t token, std::uint32_t steps) const {
  v1::OneToManyRequest request;
  request.mutable_target()->set_model(model_);
  request.mutable_input()->mutable_tokens()->add_ids(token);
  request.mutable_output()->set_form(v1::OUTPUT_FORM_TOKENS);
  request.mutable_generation()->set_max_steps(steps);
  request.mutable_generation()->mutable_sampling()->set_temperature(0);
  return request;
}

v1::ManyToManyRequest CellstateWire::opening() const {
  v1::ManyToManyRequest request;
  request.mutable_open()->mutable_target()->set_model(model_);
  request.mutable_open()->mutable_output()->set_form(v1::OUTPUT_FORM_LOGITS);
  return request;
}

v1::ManyToManyRequest CellstateWire::step(std::uint32_t token) const {
  v1::ManyToManyRequest request;
  request.mutable_input()->mutable_values()->mutable_tokens()->add_ids(token);
  return request;
}

v1::OneToOneRequest CellstateWire::unary_step(const std::string& session, std::uint32_t token) const {
  v1::OneToOneRequest request;
  request.mutable_target()->mutable_session()->set_name(session);
  request.mutable_input()->mutable_tokens()->add_ids(token);
  request.mutable_output()->set_form(v1::OUTPUT_FORM_LOGITS);
  return request;
}

Generated CellstateWire::generated(const v1::OneToManyResponse& answer, std::uint64_t position) const {
  const auto& output = answer.output();
  const auto count = static_cast<std::uint64_t>(output.values().tokens().ids_size());
  const std::uint64_t first = output.first_position();
  if ((position != 0 && first != position) || output.position() - first != count) {
    throw WrongAnswer("steps " + std::to_string(first) + " to " + std::to_string(output.position()) + " with " + std::to_string(count) +
                      " tokens came after position " + std::to_string(position));
  }
  return {count, first + count};
}

void CellstateWire::check(const v1::Output& output, std::uint64_t position) const {
  const std::size_t bytes = output.values().tensor().data().size();
  if (output.first_position() != position || output.position() != position + 1 || bytes != bytes_) {
    throw WrongAnswer("the output of step " + std::to_string(output.first_position()) + " with " + std::to_string(bytes) + " bytes came for step " +
                      std::to_string(position));
  }
}

void CellstateWire::create(const std::vector<std::string>& sessions) {
  for (const auto& name : sessions) {
    Context context;
    v1::CreateSessionRequest request;
    request.mutable_session()->set_name(name);
    request.mutable_session()->set_model(model_);
    v1::CreateSessionResponse answer;
    require(session_->CreateSession(&context, request, &answer), "creating a session");
  }
}

void CellstateWire::remove(const std::vector<std::string>& sessions) {
  for (const auto& name : sessions) {
    Context context;
    v1::DeleteSessionRequest request;
    request.set_name(name);
    v1::DeleteSessionResponse answer;
    require(session_->DeleteSession(&context, request, &answer), "deleting a session");
  }
}

step::GenerateRequest StepWire::generation(std::int32_t token, std::int32_t steps) const {
  ::step::GenerateRequest request;
  request.set_token(token);
  request.set_steps(steps);
  return request;
}

step::StepRequest StepWire::unary_step(const std::string& session, std::int32_t token) const {
  ::step::StepRequest request;
  request.set_session(session);
  request.set_token(token);
  return request;
}

void StepWire::stepped(const ::step::StepReply& answer, std::uint64_t position) const {
  if (answer.logits().size() != bytes_) {
    throw WrongAnswer("the output of step " + std::to_string(position) + " has " + std::to_string(answer.logits().size()) + " bytes");
  }
}

}  // namespace caller
