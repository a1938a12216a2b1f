#!/usr/bin/env bash
# Install the programs that the tests call and pip does not bring: promtool, node, npm and redis-server. Only what is missing. promtool and redis-server go to
# .cache/bin, because their Debian packages would also start a server on this machine.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.cache/bin:$PATH:/usr/sbin:/sbin"

unpack_promtool() {
  local folder
  folder=$(mktemp -d)
  ( cd "$folder" && apt-get download prometheus && dpkg-deb -x prometheus_*.deb . ) >/dev/null 2>&1 && mkdir -p .cache/bin && cp "$folder/usr/bin/promtool" .cache/bin/
  local status=$?
  rm -rf "$folder"
  return "$status"
}

missing=()
command -v node >/dev/null || missing+=(nodejs)
command -v npm >/dev/null || missing+=(npm)
[ "${#missing[@]}" = 0 ] || scripts/debian_packages.sh "Node.js with npm (for the test that calls from Node.js)" "${missing[@]}"

if ! command -v promtool >/dev/null; then
  echo "fetching promtool (for the test of the metrics) into .cache/bin"
  unpack_promtool || scripts/debian_packages.sh "promtool (for the test of the metrics)" prometheus
fi

if ! command -v redis-server >/dev/null; then
  # redis-tools has the server's program with its libraries, and no service; called by this name, it is the server.
  command -v redis-check-rdb >/dev/null || scripts/debian_packages.sh "redis-server (for the tests of the Redis store)" redis-tools
  mkdir -p .cache/bin
  ln -sf "$(command -v redis-check-rdb)" .cache/bin/redis-server
  redis-server --version >/dev/null || { echo "redis-server cannot be run: install it, with its service disabled, then run this again" >&2; exit 1; }
fi
