// What the caller is told to do: benchmarks/load/job.py as JSON.

#pragma once

#include <unistd.h>

#include <nlohmann/json.hpp>
#include <string>

namespace caller {

struct Job {
  std::string kind;     // generate, step-streams or step-unary
  std::string wire;     // cellstate or step
  std::string address;  // of the server
  pid_t server;         // its process id
  std::string model;    // the model's name
  std::size_t logits;   // how many outputs it has
  int size;             // streams or sessions at once
  double warm_s;        // before measuring
  double measure_s;     // measured
  int steps;            // tokens of one call; 0 where the kind has none
};

inline Job read_job(const std::string& line) {
  const auto json = nlohmann::json::parse(line);
  return {json.at("kind"),   json.at("wire"),      json.at("address"),
          json.at("server"), json.at("model"),     json.at("logits"),
          json.at("size"),   json.at("warm_s"),    json.at("measure_s"),
          json.at("options").value("steps", 0)};
}

}  // namespace caller
