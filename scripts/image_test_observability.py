"""What `image_test.sh` asks Prometheus and Grafana: is the server scraped, do its figures arrive, is the dashboard there.

Usage: image_test_observability.py PROMETHEUS_HOST:PORT GRAFANA_HOST:PORT
"""

import json
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).parents[1] / "deploy/grafana/dashboards/cellstate.json"
#: A scrape comes every five seconds.
PATIENCE_S = 30.0


def get(url: str) -> Any:
    """Return the JSON document at `url`."""
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 (an address that the shell script gave)
        return json.load(answer)


def ask(prometheus: str, query: str) -> list[float]:
    """Return the values of an instant query, one per series."""
    answer = get(f"http://{prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": query}))
    return [float(series["value"][1]) for series in answer["data"]["result"]]


def wait_for_figure(prometheus: str, query: str) -> float:
    """Ask until the first series is above 0 and return its value."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        values = ask(prometheus, query)
        if values and values[0] > 0:
            return values[0]
        time.sleep(0.5)
    sys.exit(f"Prometheus has no figure for {query} after {PATIENCE_S:g} s")


def main(prometheus: str, grafana: str) -> None:
    """Ask both; leave with what is wrong."""
    wait_for_figure(prometheus, 'up{job="cellstate"}')
    print("Prometheus scrapes the server", flush=True)
    print(f"Prometheus counts {wait_for_figure(prometheus, 'sum(cellstate_steps_total)'):.0f} steps", flush=True)
    health = get(f"http://{grafana}/api/health")
    dashboard = get(f"http://{grafana}/api/dashboards/uid/cellstate")["dashboard"]
    wanted = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    if [panel["title"] for panel in dashboard["panels"]] != [panel["title"] for panel in wanted["panels"]]:
        sys.exit("Grafana shows other panels than deploy/grafana/dashboards/cellstate.json has")
    print(f"Grafana {health.get('version', '')} has the dashboard with {len(dashboard['panels'])} panels", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
