// Percentiles, and the figures that are written: the same names and units as benchmarks/load writes.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

namespace caller {

using Figures = std::vector<std::pair<std::string, double>>;

// The smallest value that at least `share` (0 to 1) of all values do not exceed; NaN of none. As benchmarks/figures.py.
inline double percentile(std::vector<double> values, double share) {
  if (values.empty()) return std::nan("");
  const auto count = static_cast<long>(std::ceil(share * static_cast<double>(values.size())));
  const auto at = values.begin() + std::max(0L, count - 1);
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

// One line of JSON; NaN in the way of Python's json, which reads it.
inline std::string to_json(const Figures& figures) {
  std::string line;
  for (const auto& [name, value] : figures) {
    char number[40];
    std::snprintf(number, sizeof number, "%.17g", value);
    line += (line.empty() ? "{\"" : ", \"") + name + "\": " + (std::isnan(value) ? "NaN" : number);
  }
  return line + "}";
}

}  // namespace caller
