"""`parm serve --repository` as a process, with the clients that people have."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from tritonclient.utils import InferenceServerException

from http_served import post, serving
from repositories import ADMINISTRATOR, Repository, administered, ask, times_of, write_version
from served import Clients, ServerProcess, is_alive, until

pytestmark = pytest.mark.slow

OPTIONS = ("--instances", "2", "--policy", "none", "--grpc-port", "0")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    folder = tmp_path_factory.mktemp("served") / "models"
    write_version(folder, "first", "1")
    write_version(folder, "second", "1", times=3)
    write_version(folder, "second", "2", times=4)
    broken = write_version(folder, "broken", "1")
    (broken / "deployed.onnx").write_bytes(b"no model")
    (folder / "second" / "notes").mkdir()
    options = (*OPTIONS, *administered(folder.parent))
    with ServerProcess("--repository", str(folder), *options) as server:
        yield Repository(folder, server)


def test_the_newest_version_of_every_model_is_served(repository: Repository) -> None:
    assert repository.infer("first") == ("1", 1.0)
    assert repository.infer("second") == ("2", 4.0)
    assert repository.infer("second", "2") == ("2", 4.0)
    about = httpx.get(f"{repository.server.url}/v2/models/second").json()
    assert (about["name"], about["versions"]) == ("second", ["2"])
    assert "model_repository" in httpx.get(f"{repository.server.url}/v2").json()["extensions"]
    assert repository.http.is_server_ready()
    assert repository.http.is_model_ready("first")
    assert not repository.http.is_model_ready("second", "1")


def test_a_broken_bundle_is_unavailable_and_says_why(repository: Repository) -> None:
    state, reason = repository.state("broken", "1")
    assert state == "UNAVAILABLE"
    assert "deployed.onnx" in reason
    assert not repository.grpc.is_model_ready("broken")
    url = repository.server.url
    response = httpx.post(f"{url}/v2/models/broken/infer", json={"inputs": []})
    assert response.status_code == 503
    assert "deployed.onnx" in response.json()["error"]
    assert httpx.get(f"{url}/v2/models/nothing").status_code == 404


def test_metrics_name_the_model_and_its_version(repository: Repository) -> None:
    text = httpx.get(f"{repository.server.url}/metrics").text
    up = 'parm_instances_up{model="%s",role="deployed",version="%s"} %s'
    assert up % ("first", "1", "2.0") in text
    assert up % ("second", "2", "2.0") in text
    assert 'parm_requests_total{code="200",model="first",version="1"}' in text
    assert "parm_connections " in text


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_models_are_loaded_over_both_protocols(repository: Repository, protocol: str) -> None:
    client = getattr(repository, protocol)
    name = f"late-{protocol}"
    with pytest.raises(InferenceServerException, match="no model is called"):
        client.load_model(name, headers=ADMINISTRATOR)
    write_version(repository.folder, name, "7", times=7)
    client.load_model(name, headers=ADMINISTRATOR)
    assert repository.infer(name) == ("7", 7.0)
    index = client.get_model_repository_index()
    index = (
        index
        if protocol == "http"
        else [
            {"name": each.name, "version": each.version, "state": each.state}
            for each in index.models
        ]
    )
    assert {"name": name, "version": "7", "state": "READY"} in index
    for change in (client.load_model, client.unload_model):
        for other in ({}, {"authorization": "Bearer of-somebody-else"}):
            with pytest.raises(InferenceServerException, match="by administrators alone"):
                change(name, headers=other)
    assert repository.infer(name) == ("7", 7.0)
    client.unload_model(name, headers=ADMINISTRATOR)
    assert repository.state(name, "7") == ("UNAVAILABLE", "unloaded")
    assert not client.is_model_ready(name)
    with pytest.raises(InferenceServerException, match="cannot be loaded"):
        client.load_model("broken", headers=ADMINISTRATOR)
    policy = '{"version_policy": {"specific": {"versions": [%d]}}}'
    with pytest.raises(InferenceServerException, match="no version '9'"):
        client.load_model(name, config=policy % 9, headers=ADMINISTRATOR)
    client.load_model(name, config=policy % 7, headers=ADMINISTRATOR)
    assert repository.infer(name) == ("7", 7.0)


def test_a_version_replaces_another_while_a_worker_is_killed(repository: Repository) -> None:
    write_version(repository.folder, "rolled", "1")
    repository.load("rolled")
    before = set(repository.server.workers())

    def ask_rolled(client: httpx.Client, number: int) -> tuple[float, str, float]:
        asked_at = time.monotonic()
        found = ask(repository.server.url, "rolled", client=client)
        return asked_at, found["model_version"], times_of(found["outputs"][0]["data"])

    with Clients(ask_rolled, 2, pause=0.0) as clients:
        clients.more()
        write_version(repository.folder, "rolled", "2", times=2)
        loading = threading.Thread(target=repository.load, args=("rolled",))
        loading.start()
        os.kill(max(filter(is_alive, before)), signal.SIGKILL)
        loading.join()
        loaded = time.monotonic()
        clients.more(30)
    given = clients.answers
    assert {each[1:] for each in given} == {("1", 1.0), ("2", 2.0)}
    assert {each[1:] for each in given if each[0] > loaded} == {("2", 2.0)}
    until(
        lambda: repository.state("rolled", "1") == ("UNAVAILABLE", "version 2 took its place"),
        "the old version does not end",
    )


async def test_a_server_of_a_bundle_has_an_index_and_loads_nothing() -> None:
    async with serving() as served:
        client = await served.connect()
        _, _, content = await client.ask(post(b'{"ready": true}', path="/v2/repository/index"))
        assert json.loads(content) == [{"name": "model", "version": "1", "state": "READY"}]
        load = post(b"{}", path="/v2/repository/models/model/load")
        status, _, content = await client.ask(load)
        assert status == 400
        assert "--repository" in json.loads(content)["error"]
