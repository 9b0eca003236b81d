"""Servers beside each other on one cluster, on which Serve did not run before."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from commands import parm
from ray_cluster import SMALL, other_cluster
from repositories import write_version
from served import ServerProcess, write_linear_bundle
from served_repositories import Repository

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

SMALL_INSTANCES = ("--cpus-per-instance", str(SMALL), "--instances", "1", "--policy", "none")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with other_cluster(3) as address:
        yield address


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_bundle(tmp_path_factory.mktemp("plain"), coded=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beside") / "models"
    write_version(folder, "first", "1")
    write_version(folder, "other", "7", times=7)
    return folder


def repository_at(address: str, folder: Path, *options: str) -> ServerProcess:
    on_ray = ("--engine", "ray", "--address", address, "--grpc-port", "0")
    return ServerProcess("--repository", str(folder), *on_ray, *options)


def end(server: ServerProcess) -> None:
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


def test_a_bundle_is_refused_where_a_repository_has_started_serve_which_goes_on(
    address: str, bundle: Path, folder: Path
) -> None:
    on_ray = ("--engine", "ray", "--address", address, "--cpus-per-frontend", str(SMALL))
    with repository_at(address, folder, *SMALL_INSTANCES) as server:
        repository = Repository(folder, server)
        assert repository.infer("first") == ("1", 1.0)
        refused = subprocess.run(
            parm("serve", str(bundle), "--port", "0", *on_ray, *SMALL_INSTANCES),
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert refused.returncode == 2, refused.stderr
        assert "Serve runs on the cluster without proxies" in refused.stderr
        assert repository.infer("first") == ("1", 1.0)
        assert repository.infer("other") == ("7", 7.0)
        end(server)


def test_a_repository_goes_on_where_the_bundle_s_server_that_started_serve_ends(
    address: str, bundle: Path, folder: Path
) -> None:
    on_ray = ("--engine", "ray", "--address", address, "--cpus-per-frontend", str(SMALL))
    with ServerProcess(str(bundle), *on_ray, *SMALL_INSTANCES) as first:
        assert httpx.get(f"{first.url}/v2/health/ready", timeout=30).status_code == 200
        with repository_at(address, folder, *SMALL_INSTANCES) as server:
            repository = Repository(folder, server)
            assert repository.infer("first") == ("1", 1.0)
            end(first)
            assert repository.infer("first") == ("1", 1.0)
            assert repository.infer("other") == ("7", 7.0)
            end(server)


def test_of_models_that_start_together_those_without_room_are_refused(
    address: str, folder: Path
) -> None:
    with repository_at(address, folder, "--instances", "2", "--policy", "none") as server:
        repository = Repository(folder, server)
        versions = [("first", "1"), ("other", "7")]
        states = {version: repository.state(*version) for version in versions}
        (served,) = [name for name, version in versions if states[name, version][0] == "READY"]
        (refused,) = [each for each in versions if each[0] != served]
        assert "reserve 2 CPUs and the cluster has 1 free" in states[refused][1]
        assert repository.infer(served)[0] in ("1", "7")
        end(server)
