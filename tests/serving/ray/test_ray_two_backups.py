"""Two backups in a bundle, on Ray Serve: what the fast one may not answer, the better one does."""

import json
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from ray import serve

from parity_models.serving.ray.app import AppArgs, build
from parity_models.serving.ray.cluster import delete
from ray_cluster import SMALL, Client, eventually
from served import INPUTS, predictions, queries, write_linear_bundle

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

APP = "two-backups"


def test_what_one_backup_may_not_answer_a_better_one_does(tmp_path: Path, ray_url: str) -> None:
    """One of three instances is slow. Nothing is known yet: stand-ins are asked after half of the
    time that queries have."""
    slow = {"mean_between": 0, "mean_length": 1000, "workers": [0]}
    slow["delay"] = {"type": "constant", "seconds": 60}
    given = {
        "bundle": str(write_linear_bundle(tmp_path, coded=False, backed=2)),
        "cpus_per_instance": SMALL,
        "cpus_per_frontend": SMALL,
        "instances": 3,
        "parity_instances": 0,
        "frontends": 1,
        "policy": "adaptive",
        "deadline": 8.0,
        "faults": json.dumps({"coverages": {"backup": 0, "backup-2": 1}, "slowdowns": slow}),
    }
    try:
        serve.run(build(AppArgs.model_validate(given)), name=APP, route_prefix=f"/{APP}")
        url = f"{ray_url}/{APP}"
        asked = count()
        with httpx.Client(timeout=60) as http:
            # The frontend has the slow instance a moment later, maybe.
            eventually(lambda: "backup-2" in _ask(http, url, next(asked)), "no backup is asked")
        client = Client(url)
        for kind, fate in (("backup", "refused"), ("backup-2", "answered")):
            labels = rf'{{(?=[^}}]*kind="{kind}")(?=[^}}]*fate="{fate}")[^}}]*}}'
            assert client.metric(f"parm_redundant_tasks_total{labels}") > 0
    finally:
        delete(APP)


def _ask(http: httpx.Client, url: str, seed: int) -> list[str]:
    """The sources of three rows, which say what those say: the second backup three times as much as
    the model."""
    rows = queries(3, seed)
    tensor = {"name": "input", "shape": [3, INPUTS], "datatype": "FP32", "data": rows.tolist()}
    response = http.post(f"{url}/v2/models/model/infer", json={"inputs": [tensor]})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    sources: list[str] = answer["parameters"]["source"].split(",")
    sources *= 3 // len(sources)  # said once where it is that of all
    assert set(sources) <= {"model", "backup-2"}
    wanted = predictions(rows)
    wanted[[source == "backup-2" for source in sources]] *= 3
    found = np.reshape(answer["outputs"][0]["data"], wanted.shape)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)
    return sources
