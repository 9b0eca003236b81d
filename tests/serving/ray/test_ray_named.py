"""Models of several inputs, and queries of unequal length, on Ray Serve: served as elsewhere."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import httpx
import numpy as np
import pytest
from ray import serve

from parity_models.models.signature import Tensor
from parity_models.serving.ray.app import AppArgs, build
from parity_models.serving.ray.cluster import delete
from parity_models.training.named_envelope import fit_named_envelope
from ray_cluster import SMALL, kill_replica, replica_ids
from served import until
from text_models import expected, imitated, texts, write_text_bundle

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

APP = "texts"
SHARED = (Tensor("ids", "INT64", ("length",)), Tensor("mask", "INT64", ("length",)))
SLOW = (
    '{"slowdowns": {"mean_between": 0, "mean_length": 1000, "workers": [0], '
    '"delay": {"type": "constant", "seconds": 0.5}}}'
)
LENGTHS = (1, 3, 5, 8, 13, 16)

ONE_AT_A_TIME = Lock()
"""Models of what is expected are drawn by torch's own seed."""


@pytest.fixture(scope="module")
def url(ray_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bundle with a backup and a parity model on three instances, of which one is slow."""
    outputs = np.array([[-9, -9, -9], [9, 9, 9]], np.float32)
    bundle = write_text_bundle(
        tmp_path_factory.mktemp("texts"),
        backed=True,
        coded=True,
        envelope=fit_named_envelope(SHARED, texts(2000, 16), texts(500, 16), outputs),
    )
    given = {
        "bundle": str(bundle),
        "cpus_per_instance": SMALL,
        "cpus_per_frontend": SMALL,
        "instances": 3,
        "frontends": 1,
        "policy": "adaptive",
        "deadline": 20.0,
        "faults": SLOW,
    }
    try:
        serve.run(build(AppArgs.model_validate(given)), name=APP, route_prefix=f"/{APP}")
        yield f"{ray_url}/{APP}"
    finally:
        delete(APP)


def ask(http: httpx.Client, url: str, length: int, outputs: Sequence[str], seed: int) -> list[str]:
    """The sources of two rows of up to so many words, which say what those say."""
    queries = texts(2, length, seed=seed)
    tensors = [
        {"name": name, "datatype": "INT64", "shape": each.shape, "data": each.ravel().tolist()}
        for name, each in queries.items()
    ]
    message = {"inputs": tensors, "outputs": [{"name": name} for name in outputs]}
    response = http.post(f"{url}/v2/models/model/infer", json=message)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    sources: list[str] = answer["parameters"]["source"].split(",")
    with ONE_AT_A_TIME:
        predicted, stood_in = expected(queries), imitated(queries)
    assert [output["name"] for output in answer["outputs"]] == list(outputs)
    for output in answer["outputs"]:
        found = np.reshape(output["data"], output["shape"])
        for row, source in enumerate(sources):
            wanted = (predicted[output["name"]] if source == "model" else stood_in)[row]
            np.testing.assert_allclose(found[row], wanted, rtol=1e-3, atol=1e-4)
    return sources


def test_the_metadata_name_the_inputs_and_their_free_axes(url: str) -> None:
    metadata = httpx.get(f"{url}/v2/models/model", timeout=30).json()
    inputs = {each["name"]: (each["datatype"], each["shape"]) for each in metadata["inputs"]}
    assert inputs == {"ids": ("INT64", [-1, -1]), "mask": ("INT64", [-1, -1])}
    assert {each["name"] for each in metadata["outputs"]} == {"logits", "hidden"}


def test_queries_of_mixed_lengths_are_answered_while_an_instance_is_killed(url: str) -> None:
    sources: Counter[str] = Counter()

    def again_and_again(client: int) -> Counter[str]:
        found: Counter[str] = Counter()
        with httpx.Client(timeout=60) as http:
            for turn in range(30):
                seed = 100 * client + turn
                found.update(ask(http, url, LENGTHS[seed % len(LENGTHS)], ["logits"], seed))
        return found

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(again_and_again, client) for client in range(4)]
        kill_replica("shared", replica_ids(APP, "shared")[-1])
        for each in asking:
            sources += each.result()
    assert sources.total() == 4 * 30 * 2
    assert sources.keys() <= {"model", "backup", "reconstruction"}
    with httpx.Client(timeout=60) as http:

        def stood_in() -> bool:
            seed = sum(sources.values())
            sources.update(ask(http, url, LENGTHS[seed % len(LENGTHS)], ["logits"], seed))
            return bool(sources.keys() - {"model"})

        until(stood_in, "no stand-in answers for the slow instance", 120)


def test_other_outputs_are_the_models_own(url: str) -> None:
    with httpx.Client(timeout=60) as http:
        for seed, length in enumerate(LENGTHS):
            for outputs in (["hidden"], ["hidden", "logits"]):
                assert set(ask(http, url, length, outputs, seed)) == {"model"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda tensors: tensors[:1], "mask"),
        (lambda tensors: [tensors[0] | {"datatype": "FP32"}, tensors[1]], "INT64"),
        (lambda tensors: [tensors[0] | {"shape": [10]}, tensors[1]], "ids"),
        (lambda tensors: [tensors[0] | {"shape": [1, 5], "data": [1] * 5}, tensors[1]], "rows"),
        (lambda tensors: [each | {"shape": [1, 20], "data": [1] * 20} for each in tensors], "16"),
    ],
)
def test_what_does_not_fit_is_one_sentence(url: str, change: Any, why: str) -> None:
    fitting = [
        {"name": name, "datatype": "INT64", "shape": [2, 5], "data": [1] * 10}
        for name in ("ids", "mask")
    ]
    message = {"inputs": change(fitting)}
    response = httpx.post(f"{url}/v2/models/model/infer", json=message, timeout=30)
    assert response.status_code == 400, response.text
    assert why in response.json()["error"]
