"""The Helm chart, rendered by Helm itself: what Kubernetes takes, and what the server does."""

from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from commands import Here, assert_refused
from parity_models import __version__
from service_monitors import check_service_monitor

CHART = Path(__file__).parents[2] / "examples" / "helm" / "parity-models"
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


def rendered(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The manifests, by their kinds."""
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


def container(manifests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    (only,) = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


@pytest.mark.parametrize("values", [{}, ALL, NONE], ids=["as it is", "all", "none"])
def test_kubernetes_takes_what_the_chart_says(values: dict[str, Any]) -> None:
    manifests = rendered(values)
    for kind, manifest in manifests.items():
        if kind == "ServiceMonitor":  # which is the Prometheus operator's
            check_service_monitor(manifest)
        else:
            kubernetes_validate.validate(manifest, "1.30", strict=True)
    assert {"Deployment", "Service", "Pod"} <= set(manifests)
    assert (
        ("NetworkPolicy" in manifests) == ("PodDisruptionBudget" in manifests) == (values != NONE)
    )
    assert ("HorizontalPodAutoscaler" in manifests) == ("ServiceMonitor" in manifests)
    assert ("HorizontalPodAutoscaler" in manifests) == (values == ALL)


def test_helm_has_nothing_against_the_chart() -> None:
    report = helm_python.lint(CHART, ALL, strict=True)
    assert not report["errors"]
    assert [each["error"] for each in report["messages"]] == ["icon is recommended"]


def test_the_chart_is_of_this_version() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert about["version"] == about["appVersion"] == __version__
    assert container(rendered({}))["image"].endswith(f":{__version__}")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"replicas": 0}, "/replicas"),
        ({"instances": 4}, "instances"),
        ({"server": {"extraArgs": ["policy"]}}, "/server/extraArgs/0"),
        ({"service": {"http": 70000}}, "/service/http"),
    ],
)
def test_values_that_cannot_be_are_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(helm_python.HelmError, match=named):
        rendered(values)


def test_the_server_of_the_chart_can_be_had(parm_here: Here, tmp_path: Path) -> None:
    """Its options are read before its bundle, which is not here."""
    server = container(rendered({"server": {"extraArgs": ["--policy=hedging"]}}))
    program, command, folder = server["command"]
    assert (program, folder) == ("parm", "/models/bundle")
    assert_refused(parm_here(command, tmp_path / "none", *server["args"]), "there is no bundle at")


def test_secrets_are_where_the_server_is_told_that_they_are() -> None:
    manifests = rendered(ALL)
    server = container(manifests)
    mounts = {each["mountPath"] for each in server["volumeMounts"]}
    files = [each.partition("=")[2] for each in server["args"] if "=/etc/parm/" in each]
    assert len(files) == 3
    assert {str(Path(each).parent) for each in files} <= mounts
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[probe]["httpGet"]["scheme"] == "HTTPS"
    assert (
        "https://demo-parity-models:8000" in manifests["Pod"]["spec"]["containers"][0]["command"][2]
    )


def test_a_pod_has_the_time_that_its_end_takes() -> None:
    manifests = rendered({"server": {"shutdownDelay": 20.5, "deadline": 3}})
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= 20.5 + 3 + 5
