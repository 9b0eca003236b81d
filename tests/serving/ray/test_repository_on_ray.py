"""`parm serve --repository` with its instances on Ray, as a process; a cluster of this machine."""

import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import ray
from ray import serve

from commands import Here, assert_refused
from ray_cluster import SMALL, eventually, kill_replica, replica_ids
from repositories import write_version
from served import ServerProcess, until
from served_repositories import Load, Repository

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

PATIENCE = 240.0


@pytest.fixture(scope="module")
def repository(ray_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    folder = tmp_path_factory.mktemp("on-ray") / "models"
    write_version(folder, "first", "1")
    write_version(folder, "other", "7", times=7)
    (folder / "other" / "serve.toml").write_text("instances = 1\n")
    address = ray.get_runtime_context().gcs_address
    before = set(serve.status().applications)
    with ServerProcess(
        *("--repository", str(folder), "--engine", "ray", "--address", address),
        *(
            "--cpus-per-instance",
            str(SMALL),
            "--policy",
            "none",
            "--deadline",
            "30s",
            *("--grpc-port", "0"),
        ),
    ) as server:
        yield Repository(folder, server)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert set(serve.status().applications) == before


def apps(name: str, version: str) -> list[str]:
    """The applications that have the instances of a version."""
    return [each for each in serve.status().applications if f"parm-{name}-{version}-" in each]


def test_models_have_their_instances_on_the_cluster(repository: Repository) -> None:
    assert repository.infer("first") == ("1", 1.0)
    assert repository.infer("other") == ("7", 7.0)
    assert not any(
        "worker" in Path(f"/proc/{pid}/cmdline").read_text() for pid in repository.server.workers()
    )
    (first,), (other,) = apps("first", "1"), apps("other", "7")
    assert len(replica_ids(first, "deployed")) == 2
    assert len(replica_ids(other, "deployed")) == 1


def test_versions_roll_out_under_load_while_an_instance_is_killed(repository: Repository) -> None:
    write_version(repository.folder, "first", "2", times=2)
    with Load(repository.server.url, "first") as load:
        until(lambda: len(load.answers) > 20, "nobody is answered", PATIENCE)
        (first,) = apps("first", "1")
        kill_replica("deployed", replica_ids(first, "deployed")[0])
        load_now(repository, "first")
        at = len(load.answers)
        until(lambda: len(load.answers) > at + 20, "nobody is answered", PATIENCE)
    assert load.failures == []
    assert set(load.answers) == {("1", 1.0), ("2", 2.0)}
    assert set(load.answers[-10:]) == {("2", 2.0)}
    eventually(lambda: not apps("first", "1"), "the old version's instances stay")


def load_now(repository: Repository, name: str, **parameters: str) -> httpx.Response:
    url = f"{repository.server.url}/v2/repository/models/{name}/load"
    return httpx.post(url, json={"parameters": parameters}, timeout=PATIENCE)


def test_what_does_not_fit_the_cluster_is_refused_and_the_old_version_goes_on(
    repository: Repository,
) -> None:
    before = repository.infer("other")
    write_version(repository.folder, "other", "8", times=8)
    settings = repository.folder / "other" / "serve.toml"
    settings.write_text("cpus-per-instance = 1000\n")
    refused = load_now(repository, "other")
    assert refused.status_code == 400
    assert "reserve 2000 CPUs and the cluster has" in refused.json()["error"]
    settings.write_text('address = "auto"\n')
    assert "address is for all models" in load_now(repository, "other").json()["error"]
    assert repository.infer("other") == before
    assert repository.http.get_model_repository_index()
    index = {
        (each.name, each.version): each.state
        for each in repository.grpc.get_model_repository_index().models
    }
    assert index["other", "7"] == "READY"
    repository.http.unload_model("other")
    assert not apps("other", "7")


def test_a_cluster_is_started_for_a_repository_and_nothing_of_it_is_left(tmp_path: Path) -> None:
    write_version(tmp_path / "models", "first", "1")
    with ServerProcess("--repository", str(tmp_path / "models"), "--engine", "ray") as server:
        assert Repository(tmp_path / "models", server).infer("first") == ("1", 1.0)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--frontends", "2"), "leave --frontends out with a repository on Ray"),
        (("--max-instances", "4"), "leave --max-instances out with a repository on Ray"),
        (("--resources-per-instance", "gpu=1"), "--resources-per-instance needs --address"),
        (("--faults", "{}"), "faults are not for a repository with the engine ray"),
    ],
)
def test_what_ray_does_not_allow_is_refused_at_the_start(
    parm_here: Here, tmp_path: Path, options: tuple[str, ...], reason: str
) -> None:
    write_version(tmp_path / "models", "one", "1")
    on_ray = ("--repository", tmp_path / "models", "--engine", "ray")
    assert_refused(parm_here("serve", *on_ray, *options), reason)
