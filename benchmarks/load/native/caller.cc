// Makes one load: a job as a line of JSON in, what came of it as a line of JSON out; a wrong answer or a failed call ends it with an error.
//
// The compiled counterpart of `python -m benchmarks.load` for the kinds `generate`, `step-streams` and `step-unary`, so that the callers of our server take as
// little of the machine as Triton's perf_analyzer does. One thread, one completion queue, one connection for all streams.

#include <algorithm>
#include <chrono>
#include <exception>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "generate.h"
#include "job.h"
#include "step.h"
#include "window.h"
#include "wires.h"

namespace caller {
namespace {

template <class Stream>
using Streams = std::vector<std::unique_ptr<Stream>>;

// Ends all calls when it goes, on errors too: a completion queue may not go while operations are on it.
template <class Stream>
class Ending {
 public:
  Ending(Streams<Stream>& streams, Loop& loop) : streams_(streams), loop_(loop) {}
  ~Ending() {
    for (auto& stream : streams_) stream->cancel();
    loop_.drain();
  }

 private:
  Streams<Stream>& streams_;
  Loop& loop_;
};

template <class Stream>
void run(Streams<Stream>& streams, Loop& loop, Window& window, const Job& job) {
  const Ending<Stream> ending(streams, loop);
  for (auto& stream : streams) stream->start();
  window.run(loop, job.warm_s, job.measure_s);
}

// Inputs of the streams, as the callers in Python choose them.
int token_of(int stream) { return stream % 32; }

template <class Wire>
Figures generate(Wire& wire, const Job& job, Loop& loop, Window& window) {
  Heard heard;
  Streams<GeneratingStream<Wire>> streams;
  for (int number = 0; number < job.size; ++number) {
    // The first call of each is shorter by its own part, so that calls do not begin and end together ever after.
    const int first = std::max(1, job.steps * (number + 1) / job.size);
    streams.push_back(std::make_unique<GeneratingStream<Wire>>(wire, loop, window, heard, token_of(number), first, job.steps));
  }
  run(streams, loop, window, job);
  return heard.figures(window.seconds());
}

template <class Wire>
Figures step_streams(Wire& wire, const Job& job, Loop& loop, Window& window) {
  Latencies latencies;
  Streams<SteppingStream<Wire>> streams;
  for (int number = 0; number < job.size; ++number) {
    streams.push_back(std::make_unique<SteppingStream<Wire>>(wire, loop, window, latencies, token_of(number)));
  }
  run(streams, loop, window, job);
  return latencies.figures(window.seconds());
}

std::vector<std::string> session_names(int size) {
  const auto now = std::chrono::system_clock::now().time_since_epoch().count();
  std::vector<std::string> names;
  for (int number = 0; number < size; ++number) names.push_back("bench-" + std::to_string(now) + "-" + std::to_string(number));
  return names;
}

template <class Wire>
Figures step_unary(Wire& wire, const Job& job, Loop& loop, Window& window) {
  Latencies latencies;
  Streams<SteppingSession<Wire>> streams;
  const auto sessions = session_names(job.size);
  wire.create(sessions);
  for (const auto& session : sessions) streams.push_back(std::make_unique<SteppingSession<Wire>>(wire, loop, window, latencies, session));
  run(streams, loop, window, job);
  wire.remove(sessions);
  return latencies.figures(window.seconds());
}

template <class Wire>
Figures measure(Wire wire, const Job& job) {
  Loop loop;
  Window window(job.server);
  const std::map<std::string, Figures (*)(Wire&, const Job&, Loop&, Window&)> kinds = {
      {"generate", generate<Wire>}, {"step-streams", step_streams<Wire>}, {"step-unary", step_unary<Wire>}};
  Figures figures = kinds.at(job.kind)(wire, job, loop, window);
  const Figures cpu = window.cpu();
  figures.insert(figures.end(), cpu.begin(), cpu.end());
  return figures;
}

Figures measure(const Job& job) {
  grpc::ChannelArguments arguments;
  arguments.SetInt("grpc.use_local_subchannel_pool", 1);
  arguments.SetMaxReceiveMessageSize(-1);
  const auto channel = grpc::CreateCustomChannel(job.address, grpc::InsecureChannelCredentials(), arguments);
  return job.wire == "cellstate" ? measure(CellstateWire(channel, job.model, job.logits), job) : measure(StepWire(channel, job.logits), job);
}

}  // namespace
}  // namespace caller

int main() {
  try {
    std::string line;
    std::getline(std::cin, line);
    std::cout << caller::to_json(caller::measure(caller::read_job(line))) << std::endl;
  } catch (const std::exception& error) {
    std::cerr << "caller: " << error.what() << std::endl;
    return 1;
  }
}
