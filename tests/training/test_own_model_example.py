"""The example of a model of one's own leads to a served bundle."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from own_models import Parm
from parity_models.models.bundle import open_bundle
from served import ServerProcess

pytestmark = pytest.mark.slow


def test_the_example_leads_to_a_served_bundle(parm: Parm, tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "own_model.py"
    commands = [line.strip() for line in example.read_text().splitlines()[2:6]]
    assert commands[0] == "python examples/own_model.py own"
    program: dict[str, Any] = {"__name__": "example"}
    exec(compile(example.read_text(), example, "exec"), program)
    program["main"](Path("own"))
    assert commands[1].endswith(" --seconds 30")
    parm(commands[1].removeprefix("parm ").removesuffix("--seconds 30") + "--epochs 1")
    parm(commands[2].removeprefix("parm "))
    accuracy = open_bundle("own/bundle").manifest.accuracy
    assert accuracy is not None
    assert accuracy.available_accuracy > 0.9
    assert commands[3] == "parm serve own/bundle --instances 4"
    with ServerProcess("own/bundle", "--instances", "1") as server:
        test = np.load("own/test.npy")[:2]
        answer = httpx.post(
            f"{server.url}/v2/models/model/infer",
            json={
                "inputs": [
                    {
                        "name": "image",
                        "shape": list(test.shape),
                        "datatype": "FP32",
                        "data": test.ravel().tolist(),
                    }
                ]
            },
            timeout=30,
        ).json()
    assert answer["outputs"][0]["shape"] == [2, 10]
