#!/usr/bin/env bash
# Generate client/cellstate/v1 from proto/cellstate/v1. An older grpcio-tools, in a venv of its own, so that the stubs import on the oldest and the newest
# supported protobuf. With --check: fail where the committed stubs are not what the protos give.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv-stubs
wanted="grpcio-tools==1.62.3 mypy-protobuf==3.6.0 setuptools==79.0.1"
python=python3
[ ! -x .venv/bin/python ] || python=.venv/bin/python
# The environment holds absolute paths, so the folder is part of what it was made from.
inputs="$PWD $("$python" --version) $wanted"
if [ "$(cat "$venv/ready" 2>/dev/null)" != "$inputs" ]; then
  "$python" -m venv --clear "$venv"
  # shellcheck disable=SC2086
  "$venv/bin/pip" install --quiet --disable-pip-version-check $wanted
  echo "$inputs" > "$venv/ready"
fi
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
PATH="$PWD/$venv/bin:$PATH" "$venv/bin/python" -W ignore -m grpc_tools.protoc -Iproto --python_out="$out" --grpc_python_out="$out" --mypy_out="quiet:$out" --mypy_grpc_out="quiet:$out" \
  proto/cellstate/v1/*.proto
echo '"""Generated stubs of the contract: see proto/cellstate/v1. Do not edit; `make proto` writes them."""' > "$out/cellstate/v1/__init__.py"
if [ "${1:-}" = --check ]; then
  diff -ru --exclude=__pycache__ "$out/cellstate/v1" client/cellstate/v1 >/dev/null || { echo "client/cellstate/v1 is not what proto/ gives: run 'make proto' and commit it" >&2; exit 1; }
  echo "stubs are current"
else
  mkdir -p client/cellstate/v1
  rm -f client/cellstate/v1/*.py client/cellstate/v1/*.pyi
  cp "$out"/cellstate/v1/* client/cellstate/v1/
fi
