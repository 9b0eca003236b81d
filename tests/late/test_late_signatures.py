"""Late with queries of unequal length, models with several outputs, and outputs that are text."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

from parity_models import Late, UserError
from parity_models.late.values import form_of
from parity_models.models.signature import Tensor
from text_models import expected, imitated, texts, write_text_bundle

KNOWN = 60


def answering(value: Any) -> Callable[[], Awaitable[Any]]:
    return partial(asyncio.sleep, 0.001, value)


@pytest.mark.slow
@pytest.mark.usefixtures("never_overloaded")
async def test_queries_of_unequal_length_are_answered(tmp_path: Path) -> None:
    async with Late(write_text_bundle(tmp_path, backed=True), agreement=0) as late:
        other = expected(texts(1, 4))["logits"]
        with pytest.raises(UserError, match=r"'hidden'.*ask for that output alone"):
            await late(answering({"hidden": other}), texts(1, 4))
        for _ in range(KNOWN):
            await late(answering({"logits": other}), texts(1, 4))
        for length in (2, 5, 16):
            queries = texts(3, length, seed=length)
            answer = await late(asyncio.Event().wait, queries)
            assert answer.source == "backup"
            np.testing.assert_allclose(
                answer.value["logits"], imitated(queries), rtol=1e-3, atol=1e-4
            )


def test_text_is_no_output_that_a_stand_in_gives() -> None:
    words = np.array([[b"cat", b"dog"]], object)
    response = service_pb2.ModelInferResponse(model_name="model")
    response.outputs.add(name="output", datatype="BYTES", shape=[1, 2])
    response.raw_output_contents.append(serialize_byte_tensor(words).item())
    samples: list[Any] = [tritonclient.grpc.InferResult(response), {"output": words}]
    for sample in samples:
        with pytest.raises(UserError, match="ask for that output alone"):
            form_of(sample, Tensor("output", "FP32", (2,)))
