"""Models of several inputs and outputs, of any datatype and of unequal lengths, are served as they
are: over REST and gRPC, and whatever dies."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from parity_models.load.target import target
from served import ServerProcess
from text_models import expected, texts, write_text_bundle
from triton_requests import triton_inputs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    bundle = write_text_bundle(tmp_path_factory.mktemp("bundle"), backed=True)
    with ServerProcess(
        str(bundle), "--instances", "2", "--grpc-port", "0", "--policy", "adaptive"
    ) as process:
        yield process


@pytest.mark.parametrize("length", [1, 3, 4, 5, 16])
def test_queries_of_any_length_are_answered_at_their_own(triton: Any, length: int) -> None:
    queries = texts(3, length, seed=length)
    answer = triton.infer("model", triton_inputs(triton, queries))
    for name, values in expected(queries).items():
        found = answer.as_numpy(name)
        assert found.shape == values.shape
        np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-5)


def test_metadata_tells_dynamic_axes_and_exact_outputs(server: ServerProcess) -> None:
    about = httpx.get(f"{server.url}/v2/models/model").json()
    assert about["inputs"] == [
        {"name": "ids", "datatype": "INT64", "shape": [-1, -1]},
        {"name": "mask", "datatype": "INT64", "shape": [-1, -1]},
    ]
    assert about["exact_outputs"] == ["hidden"]


async def test_a_load_asks_for_the_outputs_that_stand_ins_give(server: ServerProcess) -> None:
    queries = texts(2, 4)
    async with target(server.url) as served:
        outputs, _ = await served.prepare(queries)(lambda: None)
    assert [each.name for each in served.outputs] == ["logits"]
    np.testing.assert_allclose(outputs, expected(queries)["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda ids, mask: {"ids": ids, "mask": mask[:1]}, "has 1 rows, input 'ids' has 2"),
        (lambda ids, mask: {"ids": ids, "mask": mask[:, :3]}, "has 3 along 'length', another"),
        (
            lambda ids, mask: {"ids": np.tile(ids, 5), "mask": np.tile(mask, 5)},
            "has 20 along 'length'; this server takes 1 to 16",
        ),
    ],
)
def test_tensors_unlike_the_signature_are_refused(triton: Any, change: Any, reason: str) -> None:
    queries = texts(2, 4)
    with pytest.raises(InferenceServerException, match=re.escape(reason)):
        triton.infer("model", triton_inputs(triton, change(queries["ids"], queries["mask"])))
