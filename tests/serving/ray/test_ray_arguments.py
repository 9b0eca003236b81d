"""The arguments of the application on Ray, and what is refused before there is a cluster."""

import subprocess
import sys
from pathlib import Path

import pytest
import ray
import yaml
from ray.serve.schema import ServeDeploySchema

from commands import Here, assert_refused
from own_engine import ENGINE
from own_policy import POLICY, RULE
from parity_models.errors import UserError
from parity_models.models.bundle import open_bundle
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.ray.app import AppArgs, build
from served import write_linear_bundle

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[3] / "examples" / "ray"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_bundle(tmp_path_factory.mktemp("coded"))


def test_the_manifest_has_a_config_that_serve_takes_and_the_config_arguments_that_we_do() -> None:
    manifest = yaml.safe_load((EXAMPLES / "rayservice.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayService")
    assert manifest["spec"]["rayClusterConfig"]["rayVersion"] == ray.__version__
    for config in (manifest["spec"]["serveConfigV2"], (EXAMPLES / "config.yaml").read_text()):
        (app,) = ServeDeploySchema.model_validate(yaml.safe_load(config)).applications
        assert app.import_path == "parity_models.serving.ray.app:build"
        AppArgs.model_validate(app.args)


def test_the_manifests_keep_strangers_out() -> None:
    cluster = yaml.safe_load((EXAMPLES / "rayservice.yaml").read_text())["spec"]["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token"}
    policy = yaml.safe_load((EXAMPLES / "networkpolicy.yaml").read_text())
    selected = policy["spec"]["podSelector"]["matchLabels"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["template"]["metadata"]["labels"] == selected
    # All ports are for the cluster's own pods; others have the named ones.
    for rule in policy["spec"]["ingress"]:
        (whose,) = rule["from"]
        if whose["podSelector"].get("matchLabels") != selected:
            assert {port["port"] for port in rule["ports"]} <= {8000, 8265}


def test_options_that_the_policy_does_not_have_are_refused(bundle: Path) -> None:
    arguments = AppArgs.model_validate({"bundle": str(bundle), "pool": "dedicated"})
    with pytest.raises(UserError, match="pool is no option of the policy adaptive"):
        arguments.serve_options(open_bundle(bundle))
    arguments = AppArgs.model_validate(
        {"bundle": str(bundle), "policy": "parity", "answer_after": 5.0}
    )
    with pytest.raises(UserError, match="answer_after needs answer deadline"):
        arguments.serve_options(open_bundle(bundle))


def test_the_options_of_one_s_own_policy_are_arguments(bundle: Path) -> None:
    given = {"policy": POLICY, "again_after": 5, "dispatch": RULE, "scans": 2, "agreement": 0.9}
    arguments = AppArgs.model_validate({"bundle": str(bundle), **given})
    options = arguments.serve_options(open_bundle(bundle))
    assert options.policy == PolicyChoice(POLICY, {"again_after": 0.005, "scans": 2}, RULE)
    assert options.agreement == 0.9


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("engine", ENGINE, "leave engine out: an application on Ray runs on the engine ray"),
        ("port", 8000, "leave port out: it is in http_options of Serve's config file"),
    ],
)
def test_an_application_on_ray_says_which_options_it_does_not_have(
    bundle: Path, name: str, value: object, why: str
) -> None:
    arguments = AppArgs.model_validate({"bundle": str(bundle), name: value})
    with pytest.raises(UserError, match=why):
        arguments.serve_options(open_bundle(bundle))


def test_arguments_after_serve_run_are_text(bundle: Path) -> None:
    given = {"policy": POLICY, "again_after": "5", "scans": "2", "instances": "3"}
    arguments = AppArgs.model_validate({"bundle": str(bundle), "dispatch": RULE, **given})
    options = arguments.serve_options(open_bundle(bundle))
    assert options.policy == PolicyChoice(POLICY, {"again_after": 0.005, "scans": 2}, RULE)
    assert options.instances == 3
    arguments = AppArgs.model_validate({"bundle": str(bundle), **given, "again_after": "soon"})
    with pytest.raises(UserError, match="again_after: 'soon' is no time; write a number of milli"):
        arguments.serve_options(open_bundle(bundle))


def test_times_among_the_arguments_may_have_a_unit(bundle: Path) -> None:
    """As on the command line and in a file of `parm serve`."""
    given = {"bundle": str(bundle), "policy": POLICY, "upscale_delay": "1m"}
    for deadline, again in (("500ms", "5ms"), (0.5, 5), ("0.5", "0.005s")):
        arguments = AppArgs.model_validate(given | {"deadline": deadline, "again_after": again})
        options = arguments.serve_options(open_bundle(bundle))
        assert (options.deadline, options.policy.options) == (0.5, {"again_after": 0.005})
        assert arguments.cluster_options().upscale_delay == 60
    arguments = AppArgs.model_validate(given | {"deadline": "half a second"})
    with pytest.raises(UserError, match="deadline: 'half a second' is no time; write a number of"):
        arguments.serve_options(open_bundle(bundle))


def test_requests_that_wait_at_a_proxy_are_bounded(bundle: Path) -> None:
    frontends = build(
        AppArgs.model_validate({"bundle": str(bundle), "max_queue": 7})
    )._bound_deployment
    assert frontends.max_ongoing_requests == 114
    assert frontends.max_queued_requests == 114


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--engine", "ray", "--address", "ray://head:10001"), "is of a remote driver"),
        (("--engine", "ray", "--frontends", "5"), "5 frontends need as many instances of the"),
        (("--engine", "ray", "--max-instances", "1"), "--max-instances must be 2 or more"),
        (("--frontends", "2"), "--frontends is no option of the engine local but of ray"),
        (("--engine", "ray", "--min-ready", "2"), "leave --min-ready out with the engine ray"),
    ],
)
def test_what_cannot_be_served_on_ray_is_refused(
    parm_here: Here, bundle: Path, arguments: tuple[str, ...], why: str
) -> None:
    assert_refused(parm_here("serve", bundle, *arguments), why)


def test_without_ray_its_extra_is_named(bundle: Path) -> None:
    program = """
import sys
sys.modules["ray"] = None  # as if it were not installed
from parity_models.cli.main import main
main()
"""
    command = [sys.executable, "-c", program, "serve", str(bundle)]
    done = subprocess.run([*command, "--engine", "ray"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install '.[ray]'" in done.stderr


def test_serving_does_not_import_ray() -> None:
    program = """
import sys
import parity_models.cli.serve, parity_models.serving.server
sys.exit("ray" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
