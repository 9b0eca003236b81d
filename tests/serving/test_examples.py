"""The manifests and the chart are what Kubernetes takes, and ask for what the server does."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from commands import Here, assert_refused
from parity_models import __version__

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
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

CHART = EXAMPLES / "helm" / "parity-models"
ALL: dict[str, Any] = {
    "image": {"tag": "mine"},
    "bundle": {"existingClaim": "models"},
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


def test_kubernetes_takes_the_containers_of_kserve_s_runtime() -> None:
    """The rest of the runtime is KServe's own, in test_kserve.py."""
    runtime = yaml.safe_load((EXAMPLES / "kserve" / "servingruntime.yaml").read_text())
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": runtime["metadata"]}
    validate({**pod, "spec": {"containers": runtime["spec"]["containers"]}})


def test_the_prometheus_operator_takes_the_monitor() -> None:
    monitor = yaml.safe_load((EXAMPLES / "kubernetes" / "monitoring.yaml").read_text())
    check_service_monitor(monitor)
    monitor["spec"]["endpoints"][0]["intervall"] = "5s"
    with pytest.raises(AssertionError):
        check_service_monitor(monitor)


def test_hadolint_accepts_the_dockerfile() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    file = EXAMPLES.parent / "Dockerfile"
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
    probe = container["readinessProbe"]
    noticed = probe["periodSeconds"] * (probe["failureThreshold"] + 1)
    assert float(options["shutdown-delay"]) > noticed


def container(manifests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    (only,) = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


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


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"instances": 4}, "instances"),
        ({"server": {"extraArgs": ["policy"]}}, "/server/extraArgs/0"),
        ({"service": {"http": 70000}}, "/service/http"),
    ],
)
def test_values_that_cannot_be_are_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(helm_python.HelmError, match=named):
        rendered(values)


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
