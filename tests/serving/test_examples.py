"""The manifests for Kubernetes are what Kubernetes takes, and ask for what the server does."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from commands import Here, assert_refused
from service_monitors import check_service_monitor

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
OWN_KINDS = {"InferenceService", "Kustomization", "RayService", "ServiceMonitor", "ServingRuntime"}
"""Kinds that Kubernetes does not have by itself."""


def documents() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{path.relative_to(EXAMPLES)}: {document['kind']}", document)
        for path in sorted(EXAMPLES.rglob("*.yaml"))
        if "helm" not in path.parts  # templates, in test_helm_chart.py
        for document in yaml.safe_load_all(path.read_text())
        if "apiVersion" in document and document["kind"] not in OWN_KINDS
    ]


DEPLOYMENTS = [each for each in documents() if each[0].endswith("Deployment")]


@pytest.mark.parametrize(("name", "document"), documents())
def test_kubernetes_takes_the_manifests(name: str, document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, "1.30", strict=True)


def test_kubernetes_takes_the_containers_of_kserve_s_runtime() -> None:
    """The rest of the runtime is KServe's own, in test_kserve.py."""
    runtime = yaml.safe_load((EXAMPLES / "kserve" / "servingruntime.yaml").read_text())
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": runtime["metadata"]}
    pod["spec"] = {"containers": runtime["spec"]["containers"]}
    kubernetes_validate.validate(pod, "1.30", strict=True)


def test_the_prometheus_operator_takes_the_monitor() -> None:
    monitor = yaml.safe_load((EXAMPLES / "kubernetes" / "monitoring.yaml").read_text())
    check_service_monitor(monitor)
    monitor["spec"]["endpoints"][0]["intervall"] = "5s"
    with pytest.raises(AssertionError):
        check_service_monitor(monitor)


def test_the_dockerfile_has_nothing_to_be_said_against() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    file = EXAMPLES.parent / "Dockerfile"
    done = subprocess.run([hadolint, file], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(("name", "deployment"), DEPLOYMENTS)
def test_the_server_of_a_deployment_starts(
    name: str, deployment: dict[str, Any], parm_here: Here, tmp_path: Path
) -> None:
    """Its options are read before its bundle, which is not here."""
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    program, command, _ = container["command"]
    assert program == "parm"
    assert_refused(
        parm_here(command, tmp_path / "none", *container["args"]), "there is no bundle at"
    )


@pytest.mark.parametrize(("name", "deployment"), DEPLOYMENTS)
def test_a_pod_has_time_to_shut_down(name: str, deployment: dict[str, Any]) -> None:
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = dict(argument.removeprefix("--").split("=", 1) for argument in container["args"])
    takes = float(options["shutdown-delay"]) + float(options["deadline"])
    assert pod["terminationGracePeriodSeconds"] >= takes + 5
    probe = container["readinessProbe"]
    noticed = probe["periodSeconds"] * (probe["failureThreshold"] + 1)
    assert float(options["shutdown-delay"]) > noticed
