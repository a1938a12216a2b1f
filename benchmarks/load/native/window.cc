#include "window.h"

#include <unistd.h>

#include <ctime>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace caller {
namespace {

double process_cpu_s() {
  timespec used{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  return static_cast<double>(used.tv_sec) + 1e-9 * static_cast<double>(used.tv_nsec);
}

// A thread's line in /proc. Its name may hold anything, brackets too, so the fields are counted from the last bracket.
ThreadTime parse_stat(const std::string& line, bool first) {
  const auto begin = line.find('('), end = line.rfind(')');
  std::istringstream rest(line.substr(end + 1));
  std::string skipped;
  for (int field = 0; field < 11; ++field) rest >> skipped;
  double user = 0, system = 0;
  rest >> user >> system;
  return {first, line.substr(begin + 1, end - begin - 1), (user + system) / static_cast<double>(sysconf(_SC_CLK_TCK))};
}

bool is_engine(const ThreadTime& thread) { return thread.name.rfind("engine", 0) == 0; }

// Torch's threads that compute parts of batches are called so.
bool is_helper(const ThreadTime& thread) { return thread.name == "PTThreadPool"; }

}  // namespace

std::map<pid_t, ThreadTime> thread_times(pid_t process) {
  std::map<pid_t, ThreadTime> found;
  for (const auto& folder : std::filesystem::directory_iterator("/proc/" + std::to_string(process) + "/task")) {
    std::ifstream file(folder.path() / "stat");
    std::string line;
    if (!std::getline(file, line)) continue;  // it ended just now
    const pid_t thread = std::stoi(folder.path().filename());
    found.emplace(thread, parse_stat(line, thread == process));
  }
  return found;
}

std::vector<ThreadTime> spent(const std::map<pid_t, ThreadTime>& before, const std::map<pid_t, ThreadTime>& after) {
  std::vector<ThreadTime> used;
  for (const auto& [id, thread] : after) {
    const auto old = before.find(id);
    used.push_back({thread.first, thread.name, thread.cpu_s - (old == before.end() ? 0 : old->second.cpu_s)});
  }
  std::stable_sort(used.begin(), used.end(), [](const auto& a, const auto& b) { return a.cpu_s > b.cpu_s; });
  return used;
}

void Window::run(Loop& loop, double warm_s, double measure_s) {
  loop.run_for(warm_s);
  const auto threads = thread_times(server_);
  const double own_s = process_cpu_s(), began_s = clock_s();
  open_ = true;
  loop.run_for(measure_s);
  open_ = false;
  seconds_ = clock_s() - began_s;
  own_s_ = process_cpu_s() - own_s;
  used_ = spent(threads, thread_times(server_));
}

// The event loop is the server's first thread. The engine is the thread that is named so, else the busiest of the others, with torch's threads that compute parts of
// its batches.
Figures Window::cpu() const {
  const ThreadTime* engine = nullptr;
  double loop_s = 0, helpers_s = 0, others_s = 0;
  for (const auto& thread : used_) {
    (thread.first ? loop_s : is_helper(thread) ? helpers_s : others_s) += thread.cpu_s;
    if (!thread.first && !is_helper(thread) && (engine == nullptr || (is_engine(thread) && !is_engine(*engine)))) engine = &thread;
  }
  const double engine_s = engine == nullptr ? 0 : engine->cpu_s;
  return {{"cpu_client_s", own_s_}, {"cpu_loop_s", loop_s}, {"cpu_engine_s", engine_s + helpers_s}, {"cpu_other_s", others_s - engine_s}};
}

}  // namespace caller
