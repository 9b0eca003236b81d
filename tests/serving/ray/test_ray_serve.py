"""The example's deployment in the real Ray Serve: a stand-in answers where another one hangs."""

import asyncio
import importlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray

from ports import free_ports
from ray_cluster import eventually, init_ray
from string_models import CLASSES, protect_log, texts

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent.parent.parent
RAY_SERVE = ROOT / ".servers" / "ray_serve"
CALLS = 100


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    log = [(text, CLASSES[row % 3]) for row, text in enumerate(texts(1200).ravel().tolist())]
    return protect_log(tmp_path_factory.mktemp("log"), log)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cluster whose processes find Ray Serve's packages and the example."""
    assert RAY_SERVE.exists(), f"nothing is at {RAY_SERVE}; make servers installs what Serve needs"
    folders = [f"{RAY_SERVE}", f"{ROOT / 'examples' / 'ray'}"]
    for folder in folders:
        monkeypatch.syspath_prepend(folder)
    inherited = filter(None, [os.environ.get("PYTHONPATH")])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*folders, *inherited]))
    init_ray(num_cpus=4)
    yield
    importlib.import_module("ray.serve").shutdown()
    ray.shutdown()


def test_a_stand_in_answers_where_another_deployment_hangs(cluster: None, bundle: Path) -> None:
    serve: Any = importlib.import_module("ray.serve")
    front: Any = importlib.import_module("front")

    class Classifier:
        """Says the class that a text of string_models has, until it hangs."""

        def __init__(self) -> None:
            self._works = asyncio.Event()
            self._works.set()
            self._cancelled = 0

        async def __call__(self, text: str) -> str:
            try:
                await self._works.wait()
            except asyncio.CancelledError:
                self._cancelled += 1
                raise
            return labels[text]

        def hang(self) -> None:
            self._works.clear()

        def go_on(self) -> None:
            self._works.set()

        def cancelled(self) -> int:
            return self._cancelled

    (port,) = free_ports(1)
    labels = {text: CLASSES[row % 3] for row, text in enumerate(texts(CALLS, seed=3).ravel())}
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    deployed = serve.deployment(max_ongoing_requests=2 * CALLS)(Classifier)
    serve.run(front.Front.bind(deployed.bind(), f"{bundle}", differ=0.2))
    classifier = serve.get_deployment_handle("Classifier", "default")

    with (
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300) as client,
        ThreadPoolExecutor(CALLS) as threads,
    ):

        def ask(text: str) -> tuple[str, str]:
            answer = client.post("/", json={"text": text}).raise_for_status().json()
            return answer["label"], answer["source"]

        assert [ask(text)[0] for text in labels] == [*labels.values()]
        classifier.hang.remote().result()
        late = threads.map(ask, labels)
        try:
            # That of a stand-in's answer, unless the two are compared.
            eventually(lambda: classifier.cancelled.remote().result() > 0, "no call was cancelled")
        finally:
            classifier.go_on.remote().result()
        found, sources = zip(*late, strict=True)
    assert [*found] == [*labels.values()]
    assert "backup" in sources
