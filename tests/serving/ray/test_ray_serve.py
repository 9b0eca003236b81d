"""The example's deployment in the real Ray Serve: a stand-in answers where another one hangs."""

import asyncio
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray

from ports import free_ports
from ray_cluster import eventually, init_ray
from string_models import CLASSES, log_bundle, texts

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent.parent.parent
RAY_SERVE = ROOT / ".servers" / "ray_serve"
EXAMPLE = ROOT / "examples" / "ray"
CALLS = 100


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return log_bundle(tmp_path_factory.mktemp("log"))


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Ray Serve's, on a cluster whose processes find its packages and the example."""
    assert RAY_SERVE.exists(), f"nothing is at {RAY_SERVE}; make servers installs what Serve needs"
    folders = [f"{RAY_SERVE}", f"{EXAMPLE}"]
    for folder in folders:
        monkeypatch.syspath_prepend(folder)
    inherited = filter(None, [os.environ.get("PYTHONPATH")])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*folders, *inherited]))
    init_ray(num_cpus=4)
    (port,) = free_ports(1)
    serve = importlib.import_module("ray.serve")
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


def test_a_stand_in_answers_where_another_deployment_hangs(url: str, bundle: Path) -> None:
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

    labels = {text: CLASSES[row % 3] for row, text in enumerate(texts(CALLS, seed=3).ravel())}
    deployed = serve.deployment(max_ongoing_requests=2 * CALLS)(Classifier)
    serve.run(front.Front.bind(deployed.bind(), f"{bundle}", differ=0.2))
    classifier = serve.get_deployment_handle("Classifier", "default")

    with (
        httpx.Client(base_url=url, timeout=300) as client,
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


def test_the_command_of_the_example_serves_it(url: str, bundle: Path) -> None:
    def answers() -> bool:
        assert process.poll() is None, "serve run has ended"
        answer = httpx.post(url, json={"text": "where is my card?"}, timeout=300)
        said = {"label": "card_arrival", "source": "model", "agreement": 1.0}
        return answer.is_success and answer.json() == said

    command = [f"{Path(sys.executable).parent}/serve", "run", "front:app", f"bundle={bundle}"]
    cluster = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with subprocess.Popen(command, cwd=EXAMPLE, env=os.environ | cluster) as process:
        try:
            eventually(answers, "the example does not answer")
        finally:
            process.send_signal(signal.SIGINT)
