#!/usr/bin/env bash
# Renew constraints.txt: install every extra into a throw-away environment at the newest versions that pyproject.toml allows, and write down what came.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check ".[service,cli,train,bench,dev]"
{
  sed -n '/^#/p' constraints.txt
  # Which build of torch is wanted differs between machines: its local version and the libraries that only some builds bring are left open.
  "$venv/bin/pip" freeze --exclude cellstate | sed 's/+[a-z0-9.]*$//' | grep -v -E '^(nvidia-|cuda-|triton)'
} > constraints.txt.new
mv constraints.txt.new constraints.txt
