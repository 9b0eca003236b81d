"""`parm serve --repository` in front of servers that run the models already, all of them real."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from repositories import write_version
from served import ServerProcess, until
from served_repositories import ADMINISTRATOR, Load, Repository, administered

pytestmark = pytest.mark.slow

PATIENCE = 120.0


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What upstreams serve: each version has a name of its own."""
    there = tmp_path_factory.mktemp("upstream") / "models"
    write_version(there, "first-1", "1")
    write_version(there, "first-2", "1", times=2)
    write_version(there, "other-7", "1", times=7)
    return there


@pytest.fixture(scope="module")
def fleet(there: Path) -> Iterator[Sequence[ServerProcess]]:
    """Two servers of this software."""
    options = ("--instances", "1", "--policy", "none", "--grpc-port", "0")
    with ExitStack() as stack:
        yield [
            stack.enter_context(ServerProcess("--repository", str(there), *options))
            for _ in range(2)
        ]


@pytest.fixture(scope="module")
def front(
    there: Path, fleet: Sequence[ServerProcess], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Repository]:
    one, other = fleet
    here = tmp_path_factory.mktemp("front") / "models"
    shutil.copytree(there / "first-1" / "1", here / "first" / "1")
    shutil.copytree(there / "other-7" / "1", here / "other" / "7")
    shutil.copytree(there / "first-2" / "1", here / "mine" / "1")
    named = "/{model}-{version}"
    urls = f"{one.url}{named},grpc://{other.grpc_address}{named}"
    mine = urls.replace("{model}-{version}", "first-2")
    (here / "mine" / "serve.toml").write_text(f'deployed = "{mine}"\n')
    with ServerProcess(
        *("--repository", str(here), "--deployed", urls),
        *("--policy", "hedging", "--grpc-port", "0"),
        *administered(here.parent),
    ) as server:
        yield Repository(here, server)


def test_each_model_is_asked_where_it_is_called_otherwise(front: Repository) -> None:
    assert front.infer("first") == ("1", 1.0)
    assert front.infer("other") == ("7", 7.0)
    assert front.infer("mine") == ("1", 2.0)  # version 1 of first-2 there
    text = httpx.get(f"{front.server.url}/metrics", verify=False).text
    up = 'parm_instances_up{model="first",role="deployed",version="1",work="deployed"} 2.0'
    assert up in text
    assert not front.server.workers()


def test_all_requests_go_to_a_new_version_at_once(there: Path, front: Repository) -> None:
    shutil.copytree(there / "first-2" / "1", front.folder / "first" / "2")
    with Load(front.server.url, "first") as load:
        until(lambda: len(load.answers) > 20, "nobody is answered")
        front.load("first")
        loaded = time.monotonic()
        until(lambda: len(load.asked_after(loaded)) > 20, "nobody is answered")
    assert load.failures == []
    assert set(load.answers) == {("1", 1.0), ("2", 2.0)}
    assert set(load.asked_after(loaded)) == {("2", 2.0)}


def test_a_version_that_upstreams_lack_is_refused_and_the_old_one_goes_on(
    front: Repository,
) -> None:
    before = front.infer("other")
    write_version(front.folder, "other", "9", times=9)
    url = f"{front.server.url}/v2/repository/models/other/load"
    response = httpx.post(url, headers=ADMINISTRATOR, timeout=30)
    assert response.status_code == 400
    assert "cannot be loaded: " in response.json()["error"]
    assert "other-9" in response.json()["error"]
    assert front.infer("other") == before
