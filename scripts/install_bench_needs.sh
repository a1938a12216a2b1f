#!/usr/bin/env bash
# Install what `make bench` measures beside this project, into .cache/bench/peers: a virtual environment `env` with Triton (the nvidia-pytriton wheel holds a real
# tritonserver and its Python backend) and the same torch as ours, and NVIDIA's load generator perf_analyzer. About 2 GB to fetch once; nothing is done after that.
# First the compiled caller of our server is built, in .cache/bench/native.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/build_native_caller.sh || echo "going on without the compiled caller: the callers of our server will be Python" >&2
peers=$PWD/.cache/bench/peers
pytriton=nvidia-pytriton==0.7.0
# The newest client wheel that holds perf_analyzer.
analyzer=tritonclient==2.50.0
torch=torch==$(sed -n 's/^torch==//p' constraints.txt)
inputs="$peers $pytriton $analyzer $torch"
[ "$(cat "$peers/ready" 2>/dev/null)" = "$inputs" ] && exit 0

# The wheel's Python backend is built for Python 3.11 and loads its shared library.
python=${PYTHON311:-python3.11}
ldconfig -p 2>/dev/null | grep -q 'libpython3\.11\.so\.1\.0' && command -v "$python" >/dev/null ||
  scripts/debian_packages.sh "Python 3.11 with its shared library (for Triton)" python3.11 python3.11-venv libpython3.11

mkdir -p "$peers"
log=$peers/install.log
step() { echo "  $1"; shift; "$@" >>"$log" 2>&1 || { tail -n 15 "$log" >&2; echo "could not set up the servers to measure beside ours; the whole log is $log" >&2; exit 1; }; }
unpack_analyzer() {
  local wheels=$peers/wheels
  rm -rf "$wheels" "$peers/analyzer"
  "$peers/env/bin/pip" download --quiet --disable-pip-version-check --no-deps --dest "$wheels" "$analyzer"
  "$python" -m zipfile -e "$wheels"/tritonclient-*.whl "$peers/analyzer"
  rm -rf "$wheels"
  chmod +x "$peers"/analyzer/*.data/data/bin/*
  ln -sfn "$peers"/analyzer/*.data/data/bin/perf_analyzer "$peers/perf_analyzer"
}
# perf_analyzer looks for two libraries by names that the wheel of Triton spells with a hash.
link_libraries() {
  local libraries=$1/nvidia_pytriton.libs
  mkdir -p "$peers/lib"
  ln -sfn "$libraries"/libb64-*.so.0d "$peers/lib/libb64.so.0d"
  ln -sfn "$libraries"/libcudart-*.so.* "$peers/lib/libcudart.so.12"
}
# Triton starts a stub of the interpreter's version, and looks for it beside the backend's library.
place_backend() {
  rm -rf "$peers/backends"
  cp -r "$1/pytriton/tritonserver/backends" "$peers/backends"
  cp "$1/pytriton/tritonserver/python_backend_stubs/3.11/triton_python_backend_stub" "$peers/backends/python/"
  chmod +x "$peers/backends/python/triton_python_backend_stub"
}

echo "setting up the servers to measure beside ours in .cache/bench/peers"
: > "$log"
"$peers/env/bin/python" -c '' 2>/dev/null || step "virtual environment" "$python" -m venv --clear "$peers/env"
step "Triton and torch (large)" "$peers/env/bin/pip" install --disable-pip-version-check --progress-bar off "$pytriton" "$torch" safetensors
site=$("$peers/env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
step "perf_analyzer" unpack_analyzer
step "libraries" link_libraries "$site"
step "Triton's Python backend" place_backend "$site"
echo "$inputs" > "$peers/ready"
