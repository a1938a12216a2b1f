#!/usr/bin/env bash
# Install Debian packages, as root or through sudo. Where neither is there, say in one line what to install and fail.
# Usage: scripts/debian_packages.sh PURPOSE PACKAGE...
set -euo pipefail
purpose=$1
shift
as_root=()
if [ "$(id -u)" != 0 ]; then
  as_root=(sudo)
  { [ -t 0 ] && command -v sudo >/dev/null; } || sudo -n true 2>/dev/null || as_root=(none)
fi
if ! command -v apt-get >/dev/null || [ "${as_root[*]}" = none ]; then
  echo "$purpose is missing: install it (on Debian: apt-get install $*), then run this again" >&2
  exit 1
fi
echo "installing for $purpose: $*"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" >"$log" 2>&1; }
# Old package lists name files that the mirror no longer has: renew them where the first try fails.
install "$@" || { "${as_root[@]}" apt-get update >"$log" 2>&1 && install "$@"; } || {
  tail -n 5 "$log" >&2
  echo "$purpose could not be installed: install it (apt-get install $*), then run this again" >&2
  exit 1
}
