"""Models that share instances: `parm serve --repository --shared-instances` as a process."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from msgspec import structs

from commands import Here, assert_refused
from onnx_models import failing_model, moody_model
from parity_models.errors import UserError
from parity_models.models.bundle import NewModel, open_bundle, write_bundle
from parity_models.models.bundle_files import MANIFEST
from parity_models.models.manifest import encode_manifest
from parity_models.serving.engines import EngineChoice
from parity_models.serving.repository.repository import check_engine
from repositories import write_version
from served import ServerProcess, until, write_linear_bundle
from served_repositories import Clients

pytestmark = pytest.mark.slow

STEPS = 50_000
"""Of the moody model: long enough for clients to keep instances busy, on any machine."""


def write_moody(repository: Path, name: str, version: str = "1") -> None:
    onnx = repository.parent / f"{name}-{version}.onnx"
    moody_model(onnx)
    (repository / name).mkdir(parents=True, exist_ok=True)
    write_bundle(repository / name / version, deployed=NewModel(onnx, "moody"))


def write_failing(repository: Path, name: str) -> None:
    """A bundle like one from a machine on which its model runs."""
    write_moody(repository, name)
    bundle = open_bundle(repository / name / "1")
    failing_model(bundle.deployed_path)
    content = bundle.deployed_path.read_bytes()
    stored = structs.replace(
        bundle.manifest.deployed, sha256=hashlib.sha256(content).hexdigest(), size=len(content)
    )
    manifest = encode_manifest(structs.replace(bundle.manifest, deployed=stored))
    (bundle.path / MANIFEST).write_bytes(manifest)


class MoodyLoad(Clients):
    """Clients that keep the instances of a moody model busy; which versions answered them."""

    def __init__(self, url: str, model: str, clients: int = 4, pause: float = 0.0) -> None:
        super().__init__(clients, pause)
        self.versions: list[str] = []
        self._url = f"{url}/v2/models/{model}/infer"

    def ask(self, client: httpx.Client) -> None:
        row = [0.0, float(STEPS)]
        tensor = {"name": "input", "shape": [1, 2], "datatype": "FP32", "data": row}
        answer = client.post(self._url, json={"inputs": [tensor]})
        assert answer.status_code == 200, answer.text
        assert answer.json()["outputs"][0]["data"] == row, answer.text
        self.versions.append(answer.json()["model_version"])


class Shared:
    """A server of several models, and what it says of their instances."""

    def __init__(self, server: ServerProcess) -> None:
        self.url = server.url
        self.server = server

    def has(self) -> dict[str, int]:
        """How many instances each model is to have."""
        return self._of_models("parm_shared_instances")

    def up(self) -> dict[str, int]:
        """How many are up."""
        return self._of_models("parm_instances_up")

    def rest_at(self, **has: int) -> None:
        """Wait until models have so many instances, and these are up."""
        until(
            lambda: (
                all(self.up().get(model, 0) == count for model, count in has.items())
                and has.items() <= self.has().items()
            ),
            f"instances do not become {has}",
            seconds=120,
        )

    def post(self, path: str, **parameters: str) -> httpx.Response:
        url = f"{self.url}/v2/repository/models/{path}"
        return httpx.post(url, json={"parameters": parameters}, timeout=120)

    def _of_models(self, metric: str) -> dict[str, int]:
        text = httpx.get(self.server.metrics_url, timeout=60, verify=False).text
        found: dict[str, int] = {}
        for labels, value in re.findall(rf"^{metric}{{(.*)}} (\S+)$", text, re.M):
            model = re.search(r'model="([^"]*)"', labels)
            assert model is not None
            found[model[1]] = found.get(model[1], 0) + int(float(value))
        return found


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Shared]:
    for name in ("one", "other"):
        write_moody(tmp_path / "models", name)
    # With so long a deadline, nobody is refused for waiting where the machine has much else to do.
    patient = ("--deadline", "60s")
    options = ("--shared-instances", "4", "--policy", "none", "--verify-every", "0", *patient)
    with ServerProcess("--repository", str(tmp_path / "models"), *options) as server:
        yield Shared(server)


def test_instances_follow_the_load_and_no_request_fails(shared: Shared, tmp_path: Path) -> None:
    assert shared.has() == {"one": 2, "other": 2}
    assert len(shared.server.workers()) == 4
    with MoodyLoad(shared.url, "one") as load, MoodyLoad(shared.url, "other", 1, 1.0) as beside:
        until(lambda: shared.has()["one"] > 2, "no instance moves", seconds=120)
    assert load.failures == beside.failures == []
    assert load.versions
    assert beside.versions
    with MoodyLoad(shared.url, "other") as load:
        shared.rest_at(one=1, other=3)
        write_moody(tmp_path / "models", "other", "2")
        assert shared.post("other/load").status_code == 200
        shared.rest_at(one=1, other=3)
        at = len(load.versions)
        until(lambda: len(load.versions) > at + 20, "nobody is answered")
    assert load.failures == []
    assert set(load.versions) == {"1", "2"}
    assert load.versions[-1] == "2"
    assert len(shared.server.workers()) == 4
    moved = httpx.get(shared.server.metrics_url).text
    assert 'parm_instance_moves_total{giver="one",model="other"}' in moved


def test_models_come_and_go_and_others_have_their_instances_meanwhile(
    shared: Shared, tmp_path: Path
) -> None:
    with MoodyLoad(shared.url, "one", 2, 0.1) as load:
        assert shared.post("other/unload").status_code == 200
        shared.rest_at(one=4)
        assert shared.has() == {"one": 4}
        assert shared.post("other/load").status_code == 200
        until(lambda: shared.up().get("other", 0) >= 1, "it does not come back")
        for name in ("third", "fourth", "fifth"):
            write_moody(tmp_path / "models", name)
        assert shared.post("third/load").status_code == 200
        assert shared.post("fourth/load").status_code == 200
        refused = shared.post("fifth/load")
        assert refused.status_code == 400
        assert "needs 1 of the 4 instances that models share, and 0 are left" in refused.text
        assert "unload a model" in refused.text
        assert sum(shared.has().values()) == 4
    assert load.failures == []
    shared.rest_at(one=1, other=1, third=1, fourth=1)
    until(lambda: len(shared.server.workers()) == 4, "there are more workers than instances")


def test_a_version_that_cannot_run_takes_no_instance_from_others(
    shared: Shared, tmp_path: Path
) -> None:
    workers, models = set(shared.server.workers()), tmp_path / "models"
    (models / "third").mkdir()
    write_linear_bundle(tmp_path, backed=True).rename(models / "third" / "1")
    (models / "third" / "serve.toml").write_text('policy = "approximate-backup"\n')
    refused = shared.post("third/load")
    assert refused.status_code == 400
    assert "models that run on instances of their own" in refused.text
    write_failing(models, "fourth")
    refused = shared.post("fourth/load")
    assert refused.status_code == 400
    assert "indices element out of data bounds" in refused.text
    assert shared.has() == {"one": 2, "other": 2}
    assert set(shared.server.workers()) == workers


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--shared-instances", "0"), "shared-instances must be 1 or more"),
        (("--reserve", "one=1"), "--reserve needs --shared-instances beside it"),
        (
            ("--shared-instances", "4", "--reserve", "one=5"),
            "5 instances are reserved (one 5), of 4",
        ),
        (
            ("--shared-instances", "4", "--reserve", "one=1.5"),
            "a whole number of instances for one",
        ),
        (("--shared-instances", "4", "--reserve", "no=1"), "reserved for no, and the repository"),
        (("--shared-instances", "4", "--reserve", "one"), "amounts by name"),
        (("--shared-instances", "4", "--instances", "2"), "not both"),
        (("--shared-instances", "4", "--engine", "ray"), "engine ray"),
    ],
)
def test_what_cannot_be_shared_is_refused_in_one_line(
    parm_here: Here, tmp_path: Path, options: tuple[str, ...], reason: str
) -> None:
    write_version(tmp_path / "models", "one", "1")
    assert_refused(parm_here("serve", "--repository", tmp_path / "models", *options), reason)


def test_sharing_needs_a_repository(parm_here: Here, tmp_path: Path) -> None:
    bundle = write_version(tmp_path / "models", "one", "1")
    assert_refused(parm_here("serve", bundle, "--shared-instances", "4"), "need --repository")


def test_the_options_in_force_say_who_shares(parm_here: Here, tmp_path: Path) -> None:
    write_version(tmp_path / "models", "one", "1")
    options = ("--shared-instances", "4", "--reserve", "one=2", "--print-config")
    said = parm_here("serve", "--repository", tmp_path / "models", *options).stdout
    assert "shared-instances = 4" in said
    assert 'reserve = "one=2.0"' in said


def test_models_that_cannot_share_say_why_and_others_have_their_instances(tmp_path: Path) -> None:
    models = tmp_path / "models"
    for name in ("one", "two"):
        write_version(models, name, "1")
    (models / "two" / "serve.toml").write_text("instances = 3\n")
    (models / "three").mkdir()
    write_linear_bundle(tmp_path, backed=True).rename(models / "three" / "1")
    (models / "three" / "serve.toml").write_text('policy = "approximate-backup"\n')
    with ServerProcess("--repository", str(models), "--shared-instances", "3") as server:
        index = httpx.post(f"{server.url}/v2/repository/index", json={}).json()
        reasons = {each["name"]: each["reason"] for each in index if each["state"] != "READY"}
        assert reasons.keys() == {"two", "three"}
        assert "--reserve NAME=N" in reasons["two"]
        assert "models that run on instances of their own" in reasons["three"]
        Shared(server).rest_at(one=3)


def test_an_engine_that_does_not_grow_is_refused() -> None:
    engine = EngineChoice("own_engine:InProcess", {})
    check_engine(engine, shares=False)
    with pytest.raises(UserError, match="leave shared_instances out"):
        check_engine(engine, shares=True)
