// Callers that step: each sends step k+1 after it has the output of step k, over a stream or by unary calls. As benchmarks/load/step.py.

#pragma once

#include <memory>
#include <string>
#include <vector>

#include "events.h"
#include "figures.h"
#include "window.h"
#include "wires.h"

namespace caller {

// Times of the steps that were answered while a window was open.
struct Latencies {
  std::vector<double> all_s;

  Figures figures(double seconds) const {
    const auto steps = static_cast<double>(all_s.size());
    return {{"rate", steps / seconds},
            {"p50_ms", 1e3 * percentile(all_s, 0.5)},
            {"p99_ms", 1e3 * percentile(all_s, 0.99)},
            {"seconds", seconds},
            {"tokens", steps}};
  }
};

// Steps on a stream of its own.
template <class Wire>
class SteppingStream {
 public:
  SteppingStream(Wire& wire, Loop& loop, const Window& window, Latencies& latencies, int token)
      : wire_(wire), window_(window), latencies_(latencies), request_(wire.step(token)), call_(wire.stream(&context_, loop.queue())) {}

  void start() { call_->StartCall(&started_); }
  void cancel() { context_.TryCancel(); }

 private:
  void on_started(bool ok, double now_s) {
    if (!ok) return end();
    if (!Wire::kOpens) return step(now_s);
    exchange(wire_.opening(), &opened_);
  }

  void on_opened(bool ok, double) {
    if (!ok) return end();
    advance();
  }

  void on_answered(bool ok, double now_s) {
    if (!ok) return end();
    wire_.stepped(answer_, position_++);
    if (window_.open()) latencies_.all_s.push_back(now_s - began_s_);
    advance();
  }

  // An answer may be told before the write that it answers, and a second write may not begin before the first was told.
  void on_written(bool ok, double) {
    if (ok) advance();
  }

  void advance() {
    if (--awaited_ == 0) step(clock_s());
  }

  void step(double now_s) {
    began_s_ = now_s;
    exchange(request_, &answered_);
  }

  void exchange(const typename Wire::StreamRequest& request, Event* answered) {
    awaited_ = 2;
    call_->Write(request, &written_);
    call_->Read(&answer_, answered);
  }

  void end() { call_->Finish(&status_, &ended_); }
  void on_ended(bool, double) { throw std::runtime_error("a stream ended: " + status_.error_message()); }

  Wire& wire_;
  const Window& window_;
  Latencies& latencies_;
  typename Wire::StreamRequest request_;
  typename Wire::StreamAnswer answer_;
  std::uint64_t position_ = 0;
  int awaited_ = 0;
  double began_s_ = 0;
  grpc::Status status_;
  Context context_;
  std::unique_ptr<grpc::ClientAsyncReaderWriter<typename Wire::StreamRequest, typename Wire::StreamAnswer>> call_;
  Handler<SteppingStream> started_{this, &SteppingStream::on_started}, opened_{this, &SteppingStream::on_opened}, written_{this, &SteppingStream::on_written},
      answered_{this, &SteppingStream::on_answered}, ended_{this, &SteppingStream::on_ended};
};

// Steps on a session by unary calls.
template <class Wire>
class SteppingSession {
 public:
  SteppingSession(Wire& wire, Loop& loop, const Window& window, Latencies& latencies, const std::string& session)
      : wire_(wire), loop_(loop), window_(window), latencies_(latencies), request_(wire.unary_step(session, 1)) {}

  void start() {
    context_ = std::make_unique<Context>();
    began_s_ = clock_s();
    call_ = wire_.unary(context_.get(), request_, loop_.queue());
    call_->StartCall();
    call_->Finish(&answer_, &status_, &answered_);
  }

  void cancel() { context_->TryCancel(); }

 private:
  void on_answered(bool, double now_s) {
    if (!status_.ok()) throw std::runtime_error("a step failed: " + status_.error_message());
    wire_.unary_stepped(answer_, position_++);
    if (window_.open()) latencies_.all_s.push_back(now_s - began_s_);
    call_.reset();
    start();
  }

  Wire& wire_;
  Loop& loop_;
  const Window& window_;
  Latencies& latencies_;
  typename Wire::UnaryRequest request_;
  typename Wire::UnaryAnswer answer_;
  std::uint64_t position_ = 0;
  double began_s_ = 0;
  grpc::Status status_;
  std::unique_ptr<Context> context_;  // outlives its call
  std::unique_ptr<grpc::ClientAsyncResponseReader<typename Wire::UnaryAnswer>> call_;
  Handler<SteppingSession> answered_{this, &SteppingSession::on_answered};
};

}  // namespace caller
