#!/usr/bin/env bash
# Build the compiled caller of the benchmarks (benchmarks/load/native) into .cache/bench/native, where its sources or the protos changed since the last time.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$PWD/.cache/bench/native

has_all() {
  local program
  for program in g++ make protoc grpc_cpp_plugin pkg-config; do command -v "$program" >/dev/null || return 1; done
  pkg-config --exists grpc++ protobuf nlohmann_json
}
has_all || scripts/debian_packages.sh "gRPC for C++ (for the compiled caller)" \
  g++ make pkg-config protobuf-compiler protobuf-compiler-grpc libprotobuf-dev libgrpc++-dev nlohmann-json3-dev

mkdir -p "$out"
log=$out/build.log
build() { make --no-print-directory -C benchmarks/load/native OUT="$out" "$@"; }
build --question >/dev/null 2>&1 && exit 0
echo "building the compiled caller in .cache/bench/native"
# One that is older than its sources must not measure in their name.
rm -f "$out/caller"
build --jobs="$(nproc)" >"$log" 2>&1 || { tail -n 15 "$log" >&2; echo "the compiled caller could not be built; the whole log is $log" >&2; exit 1; }
