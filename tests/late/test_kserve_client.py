"""KServe's own client gets the answers of stand-ins.

It runs in a process of its own: Triton's client has messages of the same names.
"""

import asyncio
import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import parity_models as pm
from late_targets import HttpTarget
from parity_models.bundle.bundle import Bundle
from served import predictions, queries

TESTS = Path(__file__).parent.parent
KSERVE = TESTS.parent / ".servers" / "kserve"


@pytest.mark.servers
def test_the_client_of_kserve_gets_the_answers_of_stand_ins(bundle: Bundle) -> None:
    found = [*KSERVE.glob("lib/python*/site-packages")]
    assert found, f"there is no KServe at {KSERVE}; make servers installs it"
    done = subprocess.run(
        [sys.executable, __file__, bundle.path, found[0]],
        env=os.environ | {"PYTHONPATH": str(TESTS / "support")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


async def ask_twice(bundle: str) -> None:
    """The first answer is the model's, the second a stand-in's."""
    kserve = importlib.import_module("kserve")
    tensor = kserve.InferInput("input", list(queries(2).shape), "FP32")
    tensor.set_data_from_numpy(queries(2), binary_data=False)
    asked = kserve.InferRequest(model_name="model", infer_inputs=[tensor])
    target = HttpTarget()
    async with pm.Late(bundle, differ=0.1) as late:
        transport = pm.LateTransport(late, "model", target)
        config = kserve.RESTConfig(transport=transport, protocol="v2", retries=0)
        client = kserve.InferenceRESTClient(config)
        for times in (1, 2):
            answer = await client.infer("http://a", asked, model_name="model")
            scores = answer.outputs[0].as_numpy()
            np.testing.assert_allclose(scores, times * predictions(queries(2)), rtol=1e-3)
            target.fails = True
        await client.close()
        assert (late.counts["model"], late.counts["backup"]) == (1, 1)


if __name__ == "__main__":
    sys.path.append(sys.argv[2])  # after our own packages, whose versions count
    asyncio.run(ask_twice(sys.argv[1]))
