"""`parm serve --stand-in-only`: a stand-in answers at once, or another server has to."""

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

import parity_models as pm
from parity_models.bundle.backup import GatedBackup, Refusal
from parity_models.bundle.bundle import Bundle
from parity_models.bundle.onnx_model import run_options
from parity_models.serving.errors import NoStandInError
from parity_models.trust.gate import confidences
from served import INFER, ServerProcess, gated_bundle, infer_message, predictions, queries
from string_models import CLASSES, log_bundle, texts
from triton_requests import grpc_input

ROWS = queries(20)
CONFIDENCE = confidences("scores", 2 * predictions(ROWS))
THRESHOLD = float(np.median(CONFIDENCE))
SURE, UNSURE = ROWS[CONFIDENCE > THRESHOLD], ROWS[CONFIDENCE < THRESHOLD]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Its backup predicts twice as much, and may answer half of the queries."""
    return gated_bundle(tmp_path_factory.mktemp("gated"), THRESHOLD)


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[ServerProcess]:
    with ServerProcess(str(bundle.path), "--stand-in-only", "--grpc-port", "0") as server:
        yield server


def ask(url: str, rows: Any, **parameters: Any) -> httpx.Response:
    return httpx.post(f"{url}{INFER}", json=infer_message(rows, **parameters))


@pytest.mark.slow
def test_it_answers_where_every_row_may_be_answered(server: ServerProcess) -> None:
    assert httpx.get(f"{server.url}/v2/health/ready").status_code == 200
    answer = ask(server.url, SURE[:3])
    assert answer.status_code == 200, answer.text
    found = np.array(answer.json()["outputs"][0]["data"]).reshape(3, -1)
    np.testing.assert_allclose(found, 2 * predictions(SURE[:3]), rtol=1e-3, atol=1e-5)
    agreements = answer.json()["parameters"]["agreement"].split(",")
    headers = answer.headers
    assert agreements == [headers["x-parm-agreement"]] * 3
    assert 0.9 < float(agreements[0]) <= 0.97
    assert headers["x-parm-source"] == "backup"
    for rows in (UNSURE[:1], np.concatenate([SURE[:2], UNSURE[:1]])):
        refused = ask(server.url, rows)
        assert (refused.status_code, refused.headers["x-parm-reason"]) == (503, "unsure")
        assert "retry-after" not in refused.headers
    unlike = ask(server.url, SURE[:1], redundancy="exact")
    assert (unlike.status_code, unlike.headers["x-parm-reason"]) == (503, "exact")
    assert ask(server.url, SURE[:, :5]).status_code == 400
    assert server.metric("parm_stand_in_answers_refused_total") == 4


@pytest.mark.slow
def test_grpc_says_unavailable(server: ServerProcess) -> None:
    with tritonclient.grpc.InferenceServerClient(server.grpc_address) as client:
        found = client.infer("model", [grpc_input(SURE[:2])]).as_numpy("output")
        np.testing.assert_allclose(found, 2 * predictions(SURE[:2]), rtol=1e-3, atol=1e-5)
        with pytest.raises(InferenceServerException) as refused:
            client.infer("model", [grpc_input(UNSURE[:2])])
    assert refused.value.status() == str(grpc.StatusCode.UNAVAILABLE)


async def test_a_request_that_finds_all_threads_busy_is_refused_at_once(bundle: Bundle) -> None:
    async with pm.serve(bundle, stand_in_only=True, instances=2) as server:
        asked = [asyncio.ensure_future(server.predict(SURE[:1])) for _ in range(10)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        answers = [each for each in found if not isinstance(each, BaseException)]
        refused = [each for each in found if isinstance(each, BaseException)]
        assert len(answers) == 2  # all were asked in one turn of the loop
        assert {str(each) for each in refused} == {"all threads of the stand-in are busy"}
        assert (await server.predict(SURE[:1])).sources == ("backup",)
        await server.models.drain()
        with pytest.raises(NoStandInError, match="stopping"):
            await server.predict(SURE[:1])
    with pytest.raises(NoStandInError, match="stopping"):
        await server.predict(SURE[:1])


async def test_it_learns_from_what_servers_keep(bundle: Bundle, tmp_path: Path) -> None:
    """Its gate is closed, as calibration shows no 0.98, until another process has compared."""
    state = tmp_path / "state"

    async def said() -> str:
        async with pm.serve(bundle, stand_in_only=True, agreement=0.98, state=state) as server:
            try:
                return str((await server.predict(ROWS[:1])).sources)
            except NoStandInError as error:
                return str(error)

    assert await said() == "the stand-in no longer agrees with the model"
    other = GatedBackup(bundle, 0.98, evidence=bundle.gates.evidence(state))
    (note,) = other.notes
    assert note.startswith("the gate of the backup starts closed")
    rows = queries(3000, 1)
    made = other.run(other.read(rows), run_options())
    assert not isinstance(made, Refusal)
    assert other.compare(made, predictions(rows), late=False)
    other.close()
    assert await said() == "('backup',)"


# The HTTP classification of vLLM's semantic router


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    bundle = log_bundle(tmp_path_factory.mktemp("log"))
    with ServerProcess(str(bundle), "--stand-in-only", "--agreement", "0.9") as server:
        yield server


def classify(server: ServerProcess, inputs: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/classify", json={"inputs": inputs})


def best_label(scores: Any) -> str:
    """Read a response as the router does, given the labels of its mapping: alignScoresToMapping in
    pkg/classification/http_classifier.go."""
    assert sorted(each["label"] for each in scores) == sorted(CLASSES)
    found = [each["score"] for each in scores]
    assert all(math.isfinite(score) and 0 <= score <= 1 for score in found)
    assert abs(sum(found) - 1) <= 0.02
    label: str = max(scores, key=lambda each: each["score"])["label"]
    return label


@pytest.mark.slow
def test_the_semantic_router_gets_the_score_of_every_label(classifier: ServerProcess) -> None:
    asked = texts(3, seed=4)[:, 0].tolist()
    answer = classify(classifier, asked[0])
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-parm-source"] == "backup"
    assert best_label(answer.json()) == answer.json()[0]["label"] == CLASSES[0]
    assert [best_label(each) for each in classify(classifier, asked).json()] == [*CLASSES]
    assert classifier.metric("parm_requests_total") == 2


@pytest.mark.slow
def test_the_router_gets_an_error_where_the_stand_in_may_not_answer(
    classifier: ServerProcess, server: ServerProcess
) -> None:
    refused = classify(classifier, "well 7 well")
    assert (refused.status_code, refused.headers["x-parm-reason"]) == (503, "unsure")
    for inputs, status, why in [
        ([], 400, "one row or more"),
        (7, 400, "Expected `str | array`, got `int`"),
        (2**16 * "ab", 400, "a text has 65536 at most"),
        (["a"] * 2000, 413, "up to 1000 at once"),
        (2**23 * "a", 413, "the body is larger than the 8388608 bytes"),
    ]:
        answer = classify(classifier, inputs)
        assert (answer.status_code, why in answer.text) == (status, True), answer.text
    unfit = classify(server, "my card")
    assert (unfit.status_code, "made from a log" in unfit.text) == (404, True), unfit.text
