#!/usr/bin/env bash
# Run the checks of 'make check', one line each, and fail if one fails. pre-commit runs the same ones.
# Usage: scripts/check.sh [CHECK]...     default: all of them
set -uo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
all=(ruff-format ruff mypy layers proto-lint proto-breaking proto-image stubs hadolint)

proto_image() {
  buf build proto --exclude-source-info --output - | cmp --silent - proto/cellstate.binpb || { echo "proto/cellstate.binpb is not what proto/ gives: run 'make proto' and commit it"; return 1; }
}

run_check() {
  case $1 in
    ruff-format) ruff format --check --output-format concise . || { echo "run 'make format'"; return 1; } ;;
    ruff) ruff check --quiet --output-format concise . ;;
    mypy) mypy --no-error-summary ;;
    layers) lint-imports --no-cache --no-logo ;;
    proto-lint) buf lint proto ;;
    proto-breaking) buf breaking proto --against proto/cellstate.binpb ;;
    proto-image) proto_image ;;
    stubs) scripts/generate_stubs.sh --check ;;
    hadolint) hadolint Dockerfile ;;
    *) echo "unknown check: there are ${all[*]}"; return 2 ;;
  esac
}

failed=()
[ $# -gt 0 ] || set -- "${all[@]}"
for check in "$@"; do
  if output=$(run_check "$check" 2>&1); then
    printf 'ok    %s\n' "$check"
  else
    printf 'FAIL  %s\n%s\n' "$check" "$output"
    failed+=("$check")
  fi
done
[ "${#failed[@]}" = 0 ] || { echo "failed: ${failed[*]}" >&2; exit 1; }
