"""The manifests and the chart are what Kubernetes takes, and ask for what the server does."""

import configparser
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from promql_parser import VectorSelector

from commands import Here, assert_refused
from parity_models import ServeOptions, Server, __version__, open_bundle

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
OWN_KINDS = {
    "DestinationRule",
    "EnvoyFilter",
    "InferenceService",
    "Kustomization",
    "RayService",
    "ServiceMonitor",
    "ServingRuntime",
}
"""Kinds that Kubernetes does not have by itself."""

PROBES = {
    "startup": "/v2/health/ready",
    "readiness": "/v2/health/ready",
    "liveness": "/v2/health/live",
}

CHART = EXAMPLES / "helm" / "parity-models"
ALL: dict[str, Any] = {
    "image": {"tag": "mine"},
    "bundle": {"existingClaim": "models"},
    "state": {"existingClaim": "learned"},
    "tls": {"secretName": "certificate"},
    "tokens": {"secretName": "clients"},
    "autoscaling": {"enabled": True},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "server": {"shutdownDelay": 2.5, "extraArgs": ["--policy=hedging"]},
}
NONE: dict[str, Any] = {
    "podDisruptionBudget": {"enabled": False},
    "networkPolicy": {"enabled": False},
}
"""Everything that can be switched on, and off."""


def validate(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, "1.30", strict=True)


def check_service_monitor(manifest: dict[str, Any]) -> None:
    """Check that the operator knows every key: it would leave out any other."""
    from cloudcoil.models.prometheus_operator.v1 import ServiceMonitor  # it takes seconds

    read = ServiceMonitor.model_validate(manifest)
    assert read.model_dump(mode="json", by_alias=True, exclude_unset=True) == manifest


# Manifests


def documents() -> list[Any]:
    return [
        pytest.param(document, id=f"{path.relative_to(EXAMPLES)}: {document['kind']}")
        for path in sorted(EXAMPLES.rglob("*.yaml"))
        if "helm" not in path.parts
        for document in yaml.safe_load_all(path.read_text())
        if "apiVersion" in document and document["kind"] not in OWN_KINDS
    ]


@pytest.mark.parametrize("document", documents())
def test_kubernetes_takes_the_manifests(document: dict[str, Any]) -> None:
    validate(document)


@pytest.mark.slow
def test_the_prometheus_operator_takes_the_monitor() -> None:
    manifest = (EXAMPLES / "kubernetes" / "monitoring.yaml").read_text()
    check_service_monitor(yaml.safe_load(manifest))


def test_hadolint_accepts_the_dockerfile() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    file = ROOT / "Dockerfile"
    done = subprocess.run([hadolint, file], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


# The chart


def rendered(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The manifests of the chart, by their kinds."""
    with helm_python.Chart.load(CHART) as chart:
        texts = chart.render(values, name="demo", namespace="serving")
    found = [
        document
        for name, text in texts.items()
        if name.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]
    return {each["kind"]: each for each in found}


DEPLOYMENTS = [each for each in documents() if each.id.endswith("Deployment")]
SLOW_END = {"extraArgs": ["--policy=hedging"], "shutdownDelay": 20.5, "deadline": 3}
OF_THE_CHART = [rendered({"server": given})["Deployment"] for given in ({}, SLOW_END)]


@pytest.mark.parametrize("deployment", [*DEPLOYMENTS, *OF_THE_CHART])
def test_deployments_shut_down(deployment: dict[str, Any], parm_here: Here, tmp_path: Path) -> None:
    """Its options are read before its bundle, which is not here."""
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    program, command, _ = container["command"]
    assert program == "parm"
    refused = parm_here(command, tmp_path / "none", *container["args"])
    assert_refused(refused, "there is no bundle at")
    options = dict(each.removeprefix("--").partition("=")[::2] for each in container["args"])
    takes = float(options["shutdown-delay"]) + float(options.get("deadline", 10))
    assert pod["terminationGracePeriodSeconds"] >= takes + 5
    probes = {name: container.get(f"{name}Probe") for name in PROBES}
    asked = {name: probe["httpGet"]["path"] for name, probe in probes.items() if probe}
    assert asked.items() <= PROBES.items()
    probe = container["readinessProbe"]
    noticed = probe["periodSeconds"] * (probe["failureThreshold"] + 1)
    assert float(options["shutdown-delay"]) > noticed


def container(manifests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    (only,) = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


@pytest.mark.slow
@pytest.mark.parametrize("values", [{}, ALL, NONE], ids=["as it is", "all", "none"])
def test_kubernetes_takes_the_manifests_of_the_chart(values: dict[str, Any]) -> None:
    manifests = rendered(values)
    for kind, manifest in manifests.items():
        (check_service_monitor if kind == "ServiceMonitor" else validate)(manifest)
    assert {"Deployment", "Service", "Pod"} <= set(manifests)
    for kind in ("NetworkPolicy", "PodDisruptionBudget"):
        assert (kind in manifests) == (values != NONE)
    for kind in ("HorizontalPodAutoscaler", "ServiceMonitor"):
        assert (kind in manifests) == (values == ALL)


def test_the_chart_passes_lint_and_is_of_this_version() -> None:
    report = helm_python.lint(CHART, ALL, strict=True)
    assert not report["errors"]
    assert [each["error"] for each in report["messages"]] == ["icon is recommended"]
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert about["version"] == about["appVersion"] == __version__
    assert container(rendered({}))["image"].endswith(f":{__version__}")


def test_secrets_are_mounted_where_the_server_reads_them() -> None:
    manifests = rendered(ALL)
    server = container(manifests)
    mounts = {each["mountPath"] for each in server["volumeMounts"]}
    files = [each.partition("=")[2] for each in server["args"] if "=/etc/parm/" in each]
    assert len(files) == 3
    assert {str(Path(each).parent) for each in files} <= mounts
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[probe]["httpGet"]["scheme"] == "HTTPS"
    test = manifests["Pod"]["spec"]["containers"][0]["command"][2]
    assert "https://demo-parity-models:8000" in test


# Metrics, dashboards, ports and paths


PAGE = (ROOT / "docs" / "reference" / "metrics.md").read_text()
GUIDE = (ROOT / "docs" / "how-to" / "monitor.md").read_text()
SCRAPED = {"up"}
"""Series that Prometheus itself makes."""

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
    for metric in server.models.registry.collect():
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
    options = parm_here("serve", "--help").stdout
    for name in re.findall(r"\bPARM_(\w+)=", text):
        assert f"--{name.lower().replace('_', '-')}" in options
    code = json.loads(re.findall(r"^    CMD (.*)$", text, re.M)[0])[2]
    compile(code, "health check", "exec")
    assert "/v2/health/ready" in code


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
    """The rest of the runtime is KServe's own, in test_kserve.py."""
    runtime = yaml.safe_load((EXAMPLES / "kserve" / "servingruntime.yaml").read_text())
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": runtime["metadata"]}
    validate({**pod, "spec": {"containers": runtime["spec"]["containers"]}})
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
    rules = found["NetworkPolicy"]["spec"]["ingress"]
    assert {port["port"] for rule in rules for port in rule["ports"]} == ports
    scaled = found["HorizontalPodAutoscaler"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == found["Deployment"]["metadata"]["name"]
    files = found["Kustomization"]["resources"]
    assert all((EXAMPLES / "kubernetes" / name).is_file() for name in files)


# The dashboard


def unread(written: Any, read: Any, where: str = "dashboard") -> Iterator[str]:
    """Yield the places of all that the library left out, or read as something else."""
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
