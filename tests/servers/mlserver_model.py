"""A model for MLServer, rows @ weights, for tests.

It has "input" (n, *) and "output" (n, *), as FP32; its URI names a file of the weights.
"""

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver.utils import get_model_uri


class Linear(MLModel):
    async def load(self) -> bool:
        self._weights = np.load(await get_model_uri(self._settings))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        outputs = NumpyCodec.decode_input(payload.inputs[0]) @ self._weights
        return InferenceResponse(
            id=payload.id,
            model_name=self.name,
            outputs=[NumpyCodec.encode_output("output", outputs.astype(np.float32))],
        )
