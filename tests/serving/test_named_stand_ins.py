"""Stand-ins of a model with several inputs and outputs, and queries of unequal length: they answer
for the output that they imitate, and for nothing else."""

import json
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from parity_models.serving.protocol import write_request
from parity_models.tensors.signature import Tensor
from parity_models.trust.envelope import fit_envelope
from served import INFER, ServerProcess
from text_models import expected, imitated, texts, write_text_bundle

pytestmark = pytest.mark.slow

TEXT = (Tensor("ids", "INT64", ("length",)), Tensor("mask", "INT64", ("length",)))

SLOW = {"service_times": {"deployed": {"type": "constant", "seconds": 0.3}}}
"""Predictions come later than what stand-ins say."""

OUTPUTS = np.array([[-9, -9, -9], [9, 9, 9]], np.float32)


@pytest.fixture(scope="module", params=["backup", "reconstruction"])
def source(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def client(source: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    backed = source == "backup"
    folder = tmp_path_factory.mktemp("bundle")
    envelope = fit_envelope(TEXT, texts(2000, 16), texts(500, 16), OUTPUTS)
    bundle = write_text_bundle(folder, backed=backed, coded=not backed, envelope=envelope)
    policy = "approximate-backup" if backed else "parity"
    options = ["--instances", "4", "--policy", policy, "--agreement", "0"]
    options += ["--faults", json.dumps(SLOW)]
    with (
        ServerProcess(str(bundle), *options) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        yield client


def ask(
    client: httpx.Client, length: int, outputs: list[str], *, masked: int | None = None
) -> set[str]:
    """The sources of two rows, which say what those say; the word at place `masked` is hidden."""
    queries = texts(2, length, seed=length)
    if masked is not None:
        queries["ids"][:, masked] = 1
        queries["mask"][:, masked] = 0
    content, headers = write_request(queries, outputs, binary=False)
    answer = client.post(INFER, content=content, headers=headers).json()
    sources = answer["parameters"]["source"].split(",")
    predicted, stood_in = expected(queries), imitated(queries)
    for output in answer["outputs"]:
        found = np.reshape(output["data"], output["shape"])
        for row, source in enumerate(sources):
            wanted = (predicted[output["name"]] if source == "model" else stood_in)[row]
            np.testing.assert_allclose(found[row], wanted, rtol=1e-3, atol=1e-4)
    return set(sources)


@pytest.mark.parametrize("length", [1, 5, 16])
def test_stand_ins_answer_at_each_length(client: httpx.Client, source: str, length: int) -> None:
    # On a busy machine, the model may have answered before.
    assert any(ask(client, length, ["logits"]) == {source} for _ in range(5))


@pytest.mark.parametrize("outputs", [["hidden"], ["hidden", "logits"], []])
def test_the_model_answers_for_other_outputs(client: httpx.Client, outputs: list[str]) -> None:
    assert ask(client, 5, outputs) == {"model"}


def test_the_model_answers_queries_unlike_those_learned_from(client: httpx.Client) -> None:
    assert ask(client, 16, ["logits"], masked=0) == {"model"}
