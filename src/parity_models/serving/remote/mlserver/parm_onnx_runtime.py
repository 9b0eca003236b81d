"""An ONNX model in MLServer, which has no runtime for it of its own.

`parm export --format mlserver` writes this file beside each model; MLServer imports it from
there. It needs onnxruntime in MLServer's environment, and nothing of Parity Models.
"""

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver.utils import get_model_uri


class OnnxModel(MLModel):
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        uri = await get_model_uri(self._settings)
        self._session = onnxruntime.InferenceSession(
            uri, options, providers=["CPUExecutionProvider"]
        )
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        (tensor,) = payload.inputs
        rows = np.ascontiguousarray(NumpyCodec.decode_input(tensor))
        (output,) = self._session.get_outputs()
        (predictions,) = self._session.run([output.name], {tensor.name: rows})
        return InferenceResponse(
            id=payload.id,
            model_name=self.name,
            model_version=self.version,
            outputs=[NumpyCodec.encode_output(output.name, predictions)],
        )
