// The one thread of the caller: it takes what the completion queue hands back and tells whom it concerns.

#pragma once

#include <grpcpp/completion_queue.h>

#include <chrono>

namespace caller {

// Seconds of a clock that never goes back.
inline double clock_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// A tag of the completion queue.
class Event {
 public:
  virtual ~Event() = default;
  virtual void happened(bool ok, double now_s) = 0;
};

// Calls a method of its owner.
template <class Owner>
class Handler final : public Event {
 public:
  using Method = void (Owner::*)(bool ok, double now_s);

  Handler(Owner* owner, Method method) : owner_(owner), method_(method) {}
  void happened(bool ok, double now_s) override { (owner_->*method_)(ok, now_s); }

 private:
  Owner* owner_;
  Method method_;
};

class Loop {
 public:
  grpc::CompletionQueue* queue() { return &queue_; }

  // Handle events for so many seconds. The queue tells its deadline only where it is empty, so the clock is asked at each event too.
  void run_for(double seconds) {
    const double end_s = clock_s() + seconds;
    const auto deadline = std::chrono::system_clock::now() + std::chrono::microseconds(static_cast<long>(1e6 * seconds));
    void* tag = nullptr;
    bool ok = false;
    while (queue_.AsyncNext(&tag, &ok, deadline) == grpc::CompletionQueue::GOT_EVENT) {
      const double now_s = clock_s();
      static_cast<Event*>(tag)->happened(ok, now_s);
      if (now_s >= end_s) return;
    }
  }

  // Take what is left and tell nobody; afterwards no operation may begin. All calls must have been cancelled.
  void drain() {
    queue_.Shutdown();
    void* tag = nullptr;
    for (bool ok = false; queue_.Next(&tag, &ok);) {
    }
  }

 private:
  grpc::CompletionQueue queue_;
};

}  // namespace caller
