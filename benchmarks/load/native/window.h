// The time in which a load is measured, and what processor time went where meanwhile. As benchmarks/load/window.py.

#pragma once

#include <sys/types.h>

#include <map>
#include <string>
#include <vector>

#include "events.h"
#include "figures.h"

namespace caller {

struct ThreadTime {
  bool first;        // of its process
  std::string name;  // as the kernel knows it
  double cpu_s;      // user and system time
};

// Processor time of each thread of a process, by thread id.
std::map<pid_t, ThreadTime> thread_times(pid_t process);

// What each thread used between two readings, the busiest first.
std::vector<ThreadTime> spent(const std::map<pid_t, ThreadTime>& before, const std::map<pid_t, ThreadTime>& after);

class Window {
 public:
  explicit Window(pid_t server) : server_(server) {}

  bool open() const { return open_; }
  double seconds() const { return seconds_; }

  // Let the loop run for `warm_s`, then open for `measure_s`.
  void run(Loop& loop, double warm_s, double measure_s);

  // Processor seconds: the caller's, the server's event loop, its engine, and its other threads.
  Figures cpu() const;

 private:
  pid_t server_;
  bool open_ = false;
  double seconds_ = 0;
  double own_s_ = 0;
  std::vector<ThreadTime> used_;
};

}  // namespace caller
