"""A model server of KServe's SDK, which speaks V1 and V2: rows @ weights, for tests.

    .servers/kserve/bin/python kserve_model.py WEIGHTS.npy --http_port PORT --grpc_port PORT

It is called "model", with "input" (n, *) and "output" (n, *), as FP32.
"""

import argparse
from typing import Any

import kserve
import numpy as np
from kserve.utils.utils import generate_uuid


class Linear(kserve.Model):  # type: ignore[misc]  # KServe has no types, and is installed apart
    """The model. Over V1 it is given the message as it came, over V2 its tensors."""

    def __init__(self, weights: np.ndarray) -> None:
        super().__init__("model")
        self._weights = weights
        self.ready = True

    async def get_input_types(self) -> list[dict[str, Any]]:
        return [{"name": "input", "datatype": "FP32", "shape": [-1, len(self._weights)]}]

    async def get_output_types(self) -> list[dict[str, Any]]:
        return [{"name": "output", "datatype": "FP32", "shape": [-1, self._weights.shape[1]]}]

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        if isinstance(payload, dict):
            rows = np.array(payload["instances"], np.float32)
            return {"predictions": (rows @ self._weights).tolist()}
        rows = payload.inputs[0].as_numpy()
        outputs = rows @ self._weights
        output = kserve.InferOutput("output", list(outputs.shape), "FP32")
        output.set_data_from_numpy(outputs, binary_data=False)
        return kserve.InferResponse(payload.id or generate_uuid(), self.name, [output])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(parents=[kserve.model_server.parser])
    parser.add_argument("weights")
    arguments, _ = parser.parse_known_args()
    kserve.ModelServer().start([Linear(np.load(arguments.weights))])
