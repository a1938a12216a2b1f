// What the caller says and hears, for our contract and for that of the two plain servers, with the checks of benchmarks/load/wires.py: each answer must
// continue where the one before it ended, so that a lost, doubled or empty answer ends the measurement.
//
// A wire has the requests and answers of three methods (Generation, Stream, Unary), begins their calls, and checks their answers.

#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cellstate/v1/inference.grpc.pb.h"
#include "cellstate/v1/session.grpc.pb.h"
#include "step.grpc.pb.h"

namespace caller {

using Context = grpc::ClientContext;
using Queue = grpc::CompletionQueue;

// A server answered something else than the next step.
class WrongAnswer : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// What an answer to generation holds: `count` tokens, and the position after them.
struct Generated {
  std::uint64_t count;
  std::uint64_t position;
};

class CellstateWire {
 public:
  using GenerateRequest = cellstate::v1::OneToManyRequest;
  using GenerateAnswer = cellstate::v1::OneToManyResponse;
  using StreamRequest = cellstate::v1::ManyToManyRequest;
  using StreamAnswer = cellstate::v1::ManyToManyResponse;
  using UnaryRequest = cellstate::v1::OneToOneRequest;
  using UnaryAnswer = cellstate::v1::OneToOneResponse;
  static constexpr bool kOpens = true;  // a stream begins with an opening, which is answered once

  CellstateWire(const std::shared_ptr<grpc::Channel>& channel, std::string model, std::size_t logits);

  GenerateRequest generation(std::uint32_t token, std::uint32_t steps) const;
  StreamRequest opening() const;
  StreamRequest step(std::uint32_t token) const;
  UnaryRequest unary_step(const std::string& session, std::uint32_t token) const;

  auto generate(Context* context, const GenerateRequest& request, Queue* queue) { return inference_->PrepareAsyncOneToMany(context, request, queue); }
  auto stream(Context* context, Queue* queue) { return inference_->PrepareAsyncManyToMany(context, queue); }
  auto unary(Context* context, const UnaryRequest& request, Queue* queue) { return inference_->PrepareAsyncOneToOne(context, request, queue); }

  // `position` is the one before the answer, 0 at the first.
  Generated generated(const GenerateAnswer& answer, std::uint64_t position) const;
  void stepped(const StreamAnswer& answer, std::uint64_t position) const { check(answer.output(), position); }
  void unary_stepped(const UnaryAnswer& answer, std::uint64_t position) const { check(answer.output(), position); }

  // Make and drop the sessions that unary steps name.
  void create(const std::vector<std::string>& sessions);
  void remove(const std::vector<std::string>& sessions);

 private:
  void check(const cellstate::v1::Output& output, std::uint64_t position) const;

  std::unique_ptr<cellstate::v1::InferenceService::Stub> inference_;
  std::unique_ptr<cellstate::v1::SessionService::Stub> session_;
  std::string model_;
  std::size_t bytes_;  // of one output
};

class StepWire {
 public:
  using GenerateRequest = step::GenerateRequest;
  using GenerateAnswer = step::StepReply;
  using StreamRequest = step::StepRequest;
  using StreamAnswer = step::StepReply;
  using UnaryRequest = step::StepRequest;
  using UnaryAnswer = step::StepReply;
  static constexpr bool kOpens = false;

  StepWire(const std::shared_ptr<grpc::Channel>& channel, std::size_t logits) : stub_(::step::Stepper::NewStub(channel)), bytes_(sizeof(float) * logits) {}

  GenerateRequest generation(std::int32_t token, std::int32_t steps) const;
  StreamRequest opening() const { return {}; }
  StreamRequest step(std::int32_t token) const { return unary_step("", token); }
  UnaryRequest unary_step(const std::string& session, std::int32_t token) const;

  auto generate(Context* context, const GenerateRequest& request, Queue* queue) { return stub_->PrepareAsyncGenerate(context, request, queue); }
  auto stream(Context* context, Queue* queue) { return stub_->PrepareAsyncStream(context, queue); }
  auto unary(Context* context, const UnaryRequest& request, Queue* queue) { return stub_->PrepareAsyncStep(context, request, queue); }

  // These servers answer no positions and one token for each message.
  Generated generated(const GenerateAnswer&, std::uint64_t position) const { return {1, position + 1}; }
  void stepped(const StreamAnswer& answer, std::uint64_t position) const;
  void unary_stepped(const UnaryAnswer& answer, std::uint64_t position) const { stepped(answer, position); }

  // A session begins with its first step, and these servers keep it forever.
  void create(const std::vector<std::string>&) {}
  void remove(const std::vector<std::string>&) {}

 private:
  std::unique_ptr<::step::Stepper::Stub> stub_;
  std::size_t bytes_;
};

}  // namespace caller
