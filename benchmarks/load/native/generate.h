// A caller that generates: it asks for so many tokens, takes them as they come, and asks again. As benchmarks/load/generate.py.

#pragma once

#include <memory>
#include <string>
#include <vector>

#include "events.h"
#include "figures.h"
#include "window.h"
#include "wires.h"

namespace caller {

// What came while a window was open.
struct Heard {
  std::uint64_t tokens = 0;
  std::vector<double> first_s;  // from each call to its first message
  std::vector<double> gaps_s;   // between two messages of a call

  Figures figures(double seconds) const {
    const auto messages = static_cast<double>(first_s.size() + gaps_s.size()), all = static_cast<double>(tokens);
    return {{"rate", all / seconds},
            {"first_p50_ms", 1e3 * percentile(first_s, 0.5)},
            {"first_p99_ms", 1e3 * percentile(first_s, 0.99)},
            {"p50_ms", 1e3 * percentile(gaps_s, 0.5)},
            {"p99_ms", 1e3 * percentile(gaps_s, 0.99)},
            {"tokens_per_message", messages > 0 ? all / messages : 0},
            {"seconds", seconds},
            {"tokens", all}};
  }
};

template <class Wire>
class GeneratingStream {
 public:
  // The first call is of `first` tokens, the others of `steps`.
  GeneratingStream(Wire& wire, Loop& loop, const Window& window, Heard& heard, int token, int first, int steps)
      : wire_(wire),
        loop_(loop),
        window_(window),
        heard_(heard),
        expected_(first),
        request_(wire.generation(token, first)),
        next_(wire.generation(token, steps)),
        steps_(steps) {}

  void start() {
    context_ = std::make_unique<Context>();
    position_ = tokens_ = 0;
    last_s_ = clock_s();
    call_ = wire_.generate(context_.get(), request_, loop_.queue());
    call_->StartCall(&started_);
  }

  void cancel() { context_->TryCancel(); }

 private:
  void on_started(bool ok, double) { ok ? call_->Read(&answer_, &came_) : call_->Finish(&status_, &ended_); }

  void on_came(bool ok, double now_s) {
    if (!ok) return call_->Finish(&status_, &ended_);
    const Generated generated = wire_.generated(answer_, position_);
    if (window_.open()) {
      (position_ == 0 ? heard_.first_s : heard_.gaps_s).push_back(now_s - last_s_);
      heard_.tokens += generated.count;
    }
    tokens_ += generated.count;
    position_ = generated.position;
    last_s_ = now_s;
    call_->Read(&answer_, &came_);
  }

  void on_ended(bool, double) {
    if (!status_.ok()) throw std::runtime_error("a call failed: " + status_.error_message());
    if (tokens_ != expected_) throw WrongAnswer("a call ended after " + std::to_string(tokens_) + " of " + std::to_string(expected_) + " tokens");
    request_ = next_;
    expected_ = steps_;
    call_.reset();
    start();
  }

  Wire& wire_;
  Loop& loop_;
  const Window& window_;
  Heard& heard_;
  std::uint64_t expected_, tokens_ = 0, position_ = 0;
  typename Wire::GenerateRequest request_, next_;
  int steps_;
  double last_s_ = 0;
  typename Wire::GenerateAnswer answer_;
  grpc::Status status_;
  std::unique_ptr<Context> context_;  // outlives its call
  std::unique_ptr<grpc::ClientAsyncReader<typename Wire::GenerateAnswer>> call_;
  Handler<GeneratingStream> started_{this, &GeneratingStream::on_started}, came_{this, &GeneratingStream::on_came}, ended_{this, &GeneratingStream::on_ended};
};

}  // namespace caller
