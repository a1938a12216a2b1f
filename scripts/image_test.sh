#!/usr/bin/env bash
# Build the image, bring the stack of docker-compose.yml up, call all four modes from outside, stop it, and look at what is left. 'make image-test' runs this.
#   DOCKER                the docker command (default: docker)
#   IMAGE_TEST_PROFILES   profiles of docker-compose.yml to bring up too (default: observability,scaled; empty: the server alone)
set -euo pipefail
cd "$(dirname "$0")/.."
docker=${DOCKER:-docker}
profiles=${IMAGE_TEST_PROFILES-observability,scaled}
project=cellstate-image-test
# Free ports, so that the test meets neither a server nor a Grafana that runs here already.
export GRPC_PORT=0 METRICS_PORT=0 PROMETHEUS_PORT=0 GRAFANA_PORT=0 ENVOY_PORT=0 CELLSTATE_IMAGE=cellstate:image-test COMPOSE_PROFILES=$profiles

say() { printf '[%4ds] %s\n' "$SECONDS" "$*"; }
fail() { say "FAIL: $*" >&2; exit 1; }
compose() { "$docker" compose --project-name "$project" "$@"; }
address() { compose port "$1" "$2" | sed 's/^0\.0\.0\.0/127.0.0.1/'; }
milliseconds() { date --date="$1" +%s%3N; }

clean_up() {
  local status=$?
  [ "$status" = 0 ] || compose logs --no-color --tail 30 2>/dev/null || true
  compose down --volumes --remove-orphans --timeout 5 >/dev/null 2>&1 || true
  exit "$status"
}

command -v "$docker" >/dev/null || fail "no $docker on PATH"
"$docker" info >/dev/null 2>&1 || fail "the docker engine does not answer: is it running, and may this user talk to it?"
compose version >/dev/null 2>&1 || fail "compose v2 is missing (docker compose)"
trap clean_up EXIT

say "build"
compose build --quiet cellstate
say "image: $(( $("$docker" image inspect --format '{{.Size}}' "$CELLSTATE_IMAGE") / 1000000 )) MB, of which $("$docker" image history --no-trunc --format '{{.Size}} {{.CreatedBy}}' "$CELLSTATE_IMAGE" |
  sed -n 's/^\([^ ]*\) .*COPY \(\/opt\/cellstate\|\/models\) .*/\2 \1/p' | paste -sd, - | sed 's/,/, /')"

say "start the server"
compose up --detach --no-build cellstate >/dev/null 2>&1
server=$(compose ps --quiet cellstate)
grpc=$(address cellstate 50051)
for attempt in $(seq 600); do
  ready=$("$docker" logs --timestamps "$server" 2>&1 | awk '/cellstate is ready/ { print $1; exit }')
  [ -z "$ready" ] || break
  [ "$("$docker" inspect --format '{{.State.Running}} {{.RestartCount}}' "$server")" = "true 0" ] && [ "$attempt" -lt 600 ] || fail "the server does not become ready"
  sleep 0.1
done
say "ready $(( $(milliseconds "$ready") - $(milliseconds "$("$docker" inspect --format '{{.State.StartedAt}}' "$server")") )) ms after its container started"
.venv/bin/cellstate healthcheck --address "$grpc" >/dev/null || fail "the server cannot be reached from outside"

say "wait for everything to be healthy (profiles: ${profiles:-none})"
compose up --detach --no-build --wait --wait-timeout 180 >/dev/null 2>&1 || { compose ps --all; fail "not everything became healthy"; }
containers=$(compose ps --quiet)
for container in $containers; do
  name=$("$docker" inspect --format '{{.Name}}' "$container")
  uid=$("$docker" top "$container" -eo uid,pid,args | awk 'NR == 2 { print $1 }')
  say "${name#/} runs as uid $uid"
  [ "$uid" != 0 ] || fail "${name#/} runs as root"
done
! "$docker" exec "$server" sh -c 'touch /opt/cellstate/x || touch /models/x || touch /x' 2>/dev/null || fail "the root file system can be written"
! "$docker" exec "$server" sh -c 'command -v gcc || command -v cc || command -v g++ || command -v ld' >/dev/null || fail "there is a compiler in the image"

say "the four modes, called from outside"
.venv/bin/cellstate demo --address "$grpc" --metrics-address "$(address cellstate 9464)" | sed 's/^/    /'
case ",$profiles," in *,observability,*)
  .venv/bin/python scripts/image_test_observability.py "$(address prometheus 9090)" "$(address grafana 3000)" | while read -r line; do say "$line"; done
esac
case ",$profiles," in *,scaled,*)
  say "sessions through Envoy, while one replica is killed and another one stopped"
  mapfile -t replicas < <(compose ps --quiet replica)
  .venv/bin/python scripts/image_test_scaled.py "$(address envoy 50051)" "$grpc" 20 & talking=$!
  sleep 7
  "$docker" kill "${replicas[0]}" >/dev/null
  sleep 5
  "$docker" stop --time 30 "${replicas[1]}" >/dev/null
  wait "$talking" || fail "sessions went wrong while replicas went"
  containers=$(compose ps --quiet)
esac

say "stop"
began=$(date +%s%3N)
compose stop >/dev/null 2>&1
say "stopped in $(( $(date +%s%3N) - began )) ms"
for container in $containers; do
  read -r name code < <("$docker" inspect --format '{{.Name}} {{.State.ExitCode}}' "$container")
  say "${name#/} ended with exit code $code"
  [ "$code" = 0 ] || [ "$container" != "$server" ] || fail "the server did not stop in order"
  [ "$code" != 137 ] || fail "${name#/} did not stop on SIGTERM"
done
say "PASS"
