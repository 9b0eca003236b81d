"""The way of a request: the files and Python calls that it takes in the server's process."""

import http.client
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

import numpy as np

import parity_models
from parity_models.errors import LoadError
from parity_models.models.bundle import Bundle
from parity_models.serving.client import model_path
from parity_models.serving.protocol import write_request
from parity_models.serving.server import serve
from parity_models_lab.overhead import generated
from parity_models_lab.results import Row

WARM_UP, COUNTED = 100, 50
PAUSE = 0.005
"""Seconds after an answer in which the server finishes its work for the request."""
_SOURCE = f"{Path(parity_models.__file__).parent}/"


def count_path() -> list[Row]:
    """Return the files with their calls, most first, of the median of COUNTED requests for a row;
    resumed coroutines count as calls. Raises LoadError if a request is not answered."""
    calls: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(_SOURCE):
            calls[frame.f_code.co_filename.removeprefix(_SOURCE)] += 1

    threading.setprofile(count)  # the server's threads, but not this one, which is the client's
    try:
        with generated() as bundle, serve(bundle, port=0) as server:
            assert server.url is not None
            client = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10.0)
            requests = [_ask(client, bundle, calls) for _ in range(WARM_UP + COUNTED)]
    finally:
        threading.setprofile(None)
    median = sorted(requests[WARM_UP:], key=Counter.total)[COUNTED // 2]
    return [{"file": file, "calls": number} for file, number in median.most_common()]


def _ask(client: http.client.HTTPConnection, bundle: Bundle, calls: Counter[str]) -> Counter[str]:
    model, before = bundle.manifest.deployed, calls.copy()
    row = np.zeros((1, *model.signature.input.shape), model.signature.input.dtype)
    body, head = write_request({model.signature.input.name: row})
    client.request("POST", f"{model_path(bundle.manifest.name)}/infer", body, dict(head))
    answer = client.getresponse()
    text = answer.read()
    if answer.status != 200:
        raise LoadError(f"the server answered {answer.status} {text[:300]!r}")
    time.sleep(PAUSE)
    return calls - before
