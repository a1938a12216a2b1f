#!/usr/bin/env bash
# Install the programs that the tests call and pip does not bring: promtool, node and npm. Only what is missing. promtool goes to .cache/bin, because its Debian
# package would also start a Prometheus server on this machine.
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
