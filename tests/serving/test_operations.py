"""What operators are given names what the server has: metrics, options, ports and paths."""

import configparser
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from promql_parser import VectorSelector

from commands import Here, assert_refused
from parity_models.models.bundle import open_bundle
from parity_models.serving.options import ServeOptions
from parity_models.serving.server import Server

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PAGE = (ROOT / "docs" / "reference" / "metrics.md").read_text()
GUIDE = (ROOT / "docs" / "how-to" / "monitor.md").read_text()
SCRAPED = {"up"}
"""Series that Prometheus itself makes."""

PROBES = {
    "startup": "/v2/health/ready",
    "readiness": "/v2/health/ready",
    "liveness": "/v2/health/live",
}

VARIABLES = {"$__rate_interval": "5m", "$job": "x", "${datasource}": "x"}


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((EXAMPLES / "prometheus" / "alerts.yaml").read_text())["groups"]
    return list(group["rules"])


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((EXAMPLES / "grafana" / "dashboard.json").read_text())
    return loaded


def queries() -> Iterator[tuple[str, str]]:
    """All expressions, by where they stand."""
    for rule in rules():
        yield f"alert {rule['alert']}", rule["expr"]
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield f"panel {panel['title']} {target['refId']}", target["expr"]
    for number, block in enumerate(re.findall(r"```promql\n(.*?)```", GUIDE, re.DOTALL)):
        for expression in re.split(r"\n(?! )", block.strip()):
            yield f"monitor.md {number}: {expression[:30]}", expression


def series_of(node: Any) -> Iterator[str]:
    """The names of the series that an expression reads."""
    if isinstance(node, VectorSelector):
        assert node.name is not None
        yield node.name
    for part in ("lhs", "rhs", "expr", "vector_selector", "args"):
        found = getattr(node, part, None)
        for each in found if isinstance(found, list) else [found]:
            if each is not None:
                yield from series_of(each)


@pytest.fixture(scope="module")
def served(backed: Path) -> set[str]:
    """The names of the series that a server can have."""
    server = Server(open_bundle(backed), ServeOptions())
    names = set()
    for metric in server.registry.collect():
        ends = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}
        names |= {metric.name + end for end in ends.get(metric.type, ("",))}
    return names


@pytest.mark.parametrize(("where", "expression"), list(queries()))
def test_queries_read_metrics_that_there_are(where: str, expression: str, served: set[str]) -> None:
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    names = set(series_of(promql_parser.parse(expression)))
    assert names
    assert names <= served | SCRAPED, where


def test_every_metric_has_its_row_in_the_reference(served: set[str]) -> None:
    base = {re.sub("_(bucket|count|sum)$", "", name) for name in served}
    assert {name for name in base if f"`{name}" not in PAGE} == set()


def test_every_alert_says_what_is_wrong_and_the_guide_what_to_do() -> None:
    for rule in rules():
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert f"`{rule['alert']}`" in GUIDE, rule["alert"]


# Ports, paths and options


def test_the_compose_file_s_server_is_scraped_where_its_metrics_are() -> None:
    compose = yaml.safe_load((EXAMPLES / "compose" / "compose.yaml").read_text())["services"]
    command = compose["parm"]["command"]
    (port,) = (each.partition("=")[2] for each in command if "--metrics-port" in each)
    scraped = yaml.safe_load((EXAMPLES / "compose" / "prometheus.yaml").read_text())
    (job,) = scraped["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"parm:{port}"]}]
    for service in compose.values():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (EXAMPLES / "compose" / source).resolve().is_file(), source


def test_the_image_is_built_of_what_is_there_and_serves_as_nobody(parm_here: Here) -> None:
    text = (ROOT / "Dockerfile").read_text()
    kept = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    copied = [
        name
        for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.M)
        for name in line.split()
    ]
    assert set(copied) == kept
    assert all((ROOT / name).exists() for name in copied)
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", text, re.M)
    assert "torch" not in text
    program = json.loads(re.findall(r"^ENTRYPOINT (.*)$", text, re.M)[0])
    arguments = json.loads(re.findall(r"^CMD (.*)$", text, re.M)[0])
    assert program == ["parm"]
    assert_refused(parm_here(*arguments), "there is no bundle at /models/bundle")
    code = json.loads(re.findall(r"^    CMD (.*)$", text, re.M)[0])[2]
    compile(code, "health check", "exec")
    assert "/v2/health/ready" in code


def test_variables_of_the_image_are_options(parm_here: Here) -> None:
    text = (ROOT / "Dockerfile").read_text()
    options = parm_here("serve", "--help").stdout
    for name in re.findall(r"\bPARM_(\w+)=", text):
        assert f"--{name.lower().replace('_', '-')}" in options


def test_the_service_of_systemd_starts_the_server(parm_here: Here, tmp_path: Path) -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # names have capitals
    unit.read(EXAMPLES / "systemd" / "parm.service")
    assert unit["Service"]["OOMPolicy"] == "continue", "else a worker's end is the service's"
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    program, *arguments = shlex.split(unit["Service"]["ExecStart"])
    assert Path(program).name == "parm"
    file = tmp_path / "parm.toml"
    file.write_text('bundle = "/none"')
    here = [str(file) if each.endswith(".toml") else each for each in arguments]
    assert_refused(parm_here(*here), "there is no bundle at /none")


def test_kserve_s_runtime_serves_its_own_protocols(parm_here: Here) -> None:
    runtime = yaml.safe_load((EXAMPLES / "kserve" / "servingruntime.yaml").read_text())
    assert runtime["spec"]["protocolVersions"] == ["v2", "grpc-v2"]
    (container,) = runtime["spec"]["containers"]
    program, command, bundle = container["command"]
    assert (program, bundle) == ("parm", "/mnt/models")
    arguments = [each.replace("{{.Name}}", "digits") for each in container["args"]]
    assert_refused(parm_here(command, bundle, *arguments), "there is no bundle at /mnt/models")
    (port,) = container["ports"]
    assert f"--port={port['containerPort']}" in arguments
    for probe, path in PROBES.items():
        asked = {"path": path, "port": port["containerPort"]}
        assert container[f"{probe}Probe"]["httpGet"] == asked


def test_the_probes_of_the_deployment_ask_what_they_should() -> None:
    text = (EXAMPLES / "kubernetes" / "deployment.yaml").read_text()
    objects = {each["kind"]: each for each in yaml.safe_load_all(text)}
    (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    for probe, path in PROBES.items():
        assert container[f"{probe}Probe"]["httpGet"] == {"path": path, "port": "http"}


def test_kubernetes_objects_are_about_the_same_pods() -> None:
    found: dict[str, Any] = {
        each["kind"]: each
        for path in (EXAMPLES / "kubernetes").glob("*.yaml")
        for each in yaml.safe_load_all(path.read_text())
    }
    pod = found["Deployment"]["spec"]["template"]
    labels = pod["metadata"]["labels"]
    for kind in ("PodDisruptionBudget", "Service", "ServiceMonitor", "NetworkPolicy"):
        spec = found[kind]["spec"]
        selector = spec.get("podSelector") or spec["selector"]
        assert selector.get("matchLabels", selector) == labels
    ports = {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
    assert {port["name"] for port in found["Service"]["spec"]["ports"]} == ports
    opened = {
        port["port"] for rule in found["NetworkPolicy"]["spec"]["ingress"] for port in rule["ports"]
    }
    assert opened == ports
    assert {each["port"] for each in found["ServiceMonitor"]["spec"]["endpoints"]} <= ports
    scaled = found["HorizontalPodAutoscaler"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == found["Deployment"]["metadata"]["name"]
    assert scaled["minReplicas"] == found["Deployment"]["spec"]["replicas"]
    files = found["Kustomization"]["resources"]
    assert all((EXAMPLES / "kubernetes" / name).is_file() for name in files)


# The dashboard


def unread(written: Any, read: Any, where: str = "dashboard") -> Iterator[str]:
    """What the library left out, or read as something else, by where it stands."""
    if isinstance(written, dict) and isinstance(read, dict):
        for key, value in written.items():
            yield from unread(value, read.get(key), f"{where}.{key}")
    elif isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        for number, pair in enumerate(zip(written, read, strict=True)):
            yield from unread(*pair, f"{where}[{number}]")
    elif written != read:
        yield where


def test_grafana_reads_all_of_the_dashboard() -> None:
    register_default_plugins()
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard())))
    assert list(unread(dashboard(), read)) == []
