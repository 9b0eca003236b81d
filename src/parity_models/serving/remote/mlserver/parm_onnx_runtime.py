"""A runtime for ONNX models in MLServer, which does not have one of its own.

`parm export --format mlserver` writes this file next to each model; MLServer imports it from
there. It needs onnxruntime in MLServer's environment, but not Parity Models.
"""

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver.utils import get_model_uri


class OnnxModel(MLModel):
    """Runs one ONNX file; MLServer calls `load` once and `predict` for each request."""

    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        uri = await get_model_uri(self._settings)
        self._session = onnxruntime.InferenceSession(
            uri, options, providers=["CPUExecutionProvider"]
        )
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        feeds = {
            each.name: np.ascontiguousarray(NumpyCodec.decode_input(each))
            for each in payload.inputs
        }
        asked = [each.name for each in payload.outputs or ()]
        names = asked or [each.name for each in self._session.get_outputs()]
        return InferenceResponse(
            id=payload.id,
            model_name=self.name,
            model_version=self.version,
            outputs=[
                NumpyCodec.encode_output(name, values)
                for name, values in zip(names, self._session.run(names, feeds), strict=True)
            ],
        )
