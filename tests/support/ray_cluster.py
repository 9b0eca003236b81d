"""Ray for tests: quiet, offline, gone at the end."""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Event, Lock
from typing import Any

os.environ |= {
    "RAY_AUTH_MODE": "disabled",  # else a token is written to the home folder
    "RAY_USAGE_STATS_ENABLED": "0",
}

import httpx
import numpy as np
import ray

from served import INPUTS, predictions, queries, until

SMALL = 0.01
"""CPUs that instances reserve in tests: next to none."""


def init_ray(**options: Any) -> Any:
    """Start a cluster's head: ray.init, once more where the machine is too busy to start Ray's
    processes within the 30 s that Ray gives them."""
    tries = 3
    while True:
        try:
            return ray.init("local", include_dashboard=False, log_to_driver=False, **options)
        except Exception as error:
            ray.shutdown()
            tries -= 1
            if not tries or "timed out during startup" not in str(error):
                raise


@contextmanager
def other_cluster(cpus: int) -> Iterator[str]:
    """A cluster in a process of its own; gives its address."""
    program = (
        "import sys, ray_cluster\n"
        f"head = ray_cluster.init_ray(num_cpus={cpus})\n"
        "print(head.address_info['gcs_address'], flush=True)\n"
        "sys.stdin.read()\n"
    )
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
    ) as head:
        assert head.stdin is not None
        assert head.stdout is not None
        try:
            address = head.stdout.readline().strip()
            assert address, "the cluster does not start"
            yield address
        finally:
            head.stdin.close()


def eventually(condition: Callable[[], bool], otherwise: str) -> None:
    """Wait for what a cluster brings about, which needs the cores that looking often would take."""
    until(condition, otherwise, 240, pause=0.1)


class Client:
    """Asks a server for predictions of the linear bundle, again and again from several threads."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answered = 0
        self.sources: Counter[str] = Counter()
        self._ids = count()
        self._counting = Lock()

    def metric(self, name: str) -> float:
        """The sum over its labels."""
        text = httpx.get(f"{self.url}/metrics").text
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.M))

    def ask(self, http: httpx.Client) -> None:
        """A query is answered, and the answer is the right one."""
        rows = queries(1, next(self._ids))
        tensor = {"name": "input", "shape": [1, INPUTS], "datatype": "FP32", "data": rows.tolist()}
        response = http.post(f"{self.url}/v2/models/model/infer", json={"inputs": [tensor]})
        assert response.status_code == 200, response.text
        answer = response.json()
        data = answer["outputs"][0]["data"]
        np.testing.assert_allclose(data, predictions(rows)[0], rtol=1e-3, atol=1e-5)
        with self._counting:
            self.answered += 1
            self.sources[answer["parameters"]["source"]] += 1

    @contextmanager
    def asking(self, clients: int = 4, pause: float = 0.01) -> Iterator[None]:
        """Meanwhile clients ask; a request that fails is raised at the end."""

        done = Event()

        def again_and_again() -> None:
            with httpx.Client(timeout=30) as http:
                while not done.wait(pause):
                    self.ask(http)

        with ThreadPoolExecutor(clients) as pool:
            asking = [pool.submit(again_and_again) for _ in range(clients)]
            try:
                yield
            finally:
                done.set()
        for client in asking:
            client.result()

    def more(self, answers: int = 20) -> None:
        """Wait until so many more queries are answered."""
        enough = self.answered + answers
        until(lambda: self.answered >= enough, "queries are not answered", 120)
