"""The command `path`: the files and Python calls that it takes in the server's process."""

import http.client
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

import parity_models
from parity_models.errors import LoadError
from parity_models.serving.client import model_path
from parity_models.serving.protocol import write_request
from parity_models.serving.server import serve
from parity_models_lab.overhead import MLP, generated, rows_like
from parity_models_lab.results import Out, Row, report

WARM_UP, COUNTED = 100, 50
PAUSE = 0.005  # seconds after an answer, in which the server finishes its work for the request
_SOURCE = f"{Path(parity_models.__file__).parent}/"


def path(out: Out = None) -> None:
    """Count the files and Python calls that one REST request takes in the server's process.

    Serves a generated MLP and its parity model with the default policy, sends requests for a row
    one after the other, and shows the one with the fewest calls, as timers that fire meanwhile add
    some. Resumed coroutines count as calls.
    """
    calls, requests = Counter[str](), list[Counter[str]]()

    def count(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(_SOURCE):
            calls[frame.f_code.co_filename.removeprefix(_SOURCE)] += 1

    threading.setprofile(count)  # the server's threads, but not this one, which is the client's
    try:
        with generated(MLP) as (bundle, _), serve(bundle, port=0) as server:
            assert server.url is not None
            client = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10.0)
            body, head = write_request({MLP.name: rows_like(MLP, 1)})
            for _ in range(WARM_UP + COUNTED):
                calls.clear()
                target = f"{model_path(bundle.manifest.name)}/infer"
                client.request("POST", target, body, dict(head))
                answer = client.getresponse()
                if answer.read() and answer.status != 200:
                    raise LoadError(f"the server answered {answer.status} {answer.reason}")
                time.sleep(PAUSE)
                requests.append(calls.copy())
    finally:
        threading.setprofile(None)
    fewest = min(requests[WARM_UP:], key=Counter.total)
    rows: list[Row] = [{"file": file, "calls": each} for file, each in fewest.most_common()]
    report(f"{len(rows)} files and {fewest.total()} calls", rows, out and out / "path.json")
