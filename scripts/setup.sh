#!/usr/bin/env bash
# Make .venv and install the project with its pinned dependencies. Does nothing, in a few milliseconds, when nothing has changed since the last time.
# Usage: scripts/setup.sh [EXTRAS]       EXTRAS: comma-separated, default service,cli,dev
# PYTHON names the interpreter. pip's own settings (PIP_EXTRA_INDEX_URL, for instance, for another build of torch) are respected.
set -euo pipefail
cd "$(dirname "$0")/.."
extras=${1:-service,cli,dev}
venv=.venv
ready=$venv/.ready-${extras//,/-}

# The environment holds absolute paths, so the folder is part of what it was made from.
inputs=$({ pwd; cat pyproject.toml constraints.txt; } | sha256sum | cut -d' ' -f1)
[ "$(cat "$ready" 2>/dev/null)" = "$inputs" ] && [ -x "$venv/bin/cellstate" ] && "$venv/bin/python" -c '' 2>/dev/null && exit 0

find_python() {
  local candidate
  for candidate in "${PYTHON:-python3}" python3.11 python3.12 python3.13; do
    "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$candidate"; return; }
  done
  echo "Python 3.11 or newer is missing: install it (on Debian 12: apt-get install python3 python3-venv), or name one with PYTHON=..." >&2
  return 1
}

# Show what pip does: one line that changes on a terminal, only the large downloads elsewhere.
show_progress() {
  awk -v tty="$1" '
    function shown(line) { if (tty) printf "\r\033[K  %s", substr(line, 1, 100); else print "  " line; fflush() }
    $1 == "Collecting" { packages++; if (tty) shown(packages " packages: " $2) }
    $1 == "Downloading" && (tty || ($NF == "MB)" && substr($(NF - 1), 2) + 0 >= 10) || $NF == "GB)") { shown("downloading " $2 " " $(NF - 1) " " $NF) }
    /^Installing collected packages/ { shown("installing " split($0, names, ", ") " package(s)") }
    END { if (tty) printf "\r\033[K" }'
}

started=$SECONDS
python=$(find_python)
if ! "$venv/bin/python" -c '' 2>/dev/null; then
  "$python" -c 'import ensurepip' 2>/dev/null || scripts/debian_packages.sh "Python's venv module" python3-venv
  echo "making $venv with $("$python" --version)"
  "$python" -m venv --clear "$venv"
fi
echo "installing the project with extras $extras (pinned in constraints.txt)"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
tty=0
[ -t 1 ] && tty=1
"$venv/bin/pip" install --disable-pip-version-check --progress-bar off --constraint constraints.txt --editable ".[$extras]" 2>&1 | tee "$log" | show_progress "$tty" || {
  grep -v -E '^(Collecting|Requirement|  )' "$log" | tail -n 15 >&2
  echo "pip could not install what constraints.txt names" >&2
  exit 1
}
echo "$inputs" > "$ready"
echo "$venv is ready after $((SECONDS - started)) s"
