"""Triton's ONNX Runtime backend in Python, for a Triton that comes without the one in C++.

Triton takes the folder that this file is in as the backend of that folder's name.
"""

import os
import sys
from pathlib import Path
from typing import Any

sys.path.append(os.environ["PYTHONPATH"])  # which Triton's Python does not look at

import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = Path(args["model_repository"], args["model_version"], "model.onnx")
        self._session = onnxruntime.InferenceSession(path, options)
        self._inputs = [each.name for each in self._session.get_inputs()]

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        rows = {
            name: triton.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs
        }
        asked = request.requested_output_names()
        try:
            outputs = self._session.run(asked, rows)
        except Exception as error:
            return triton.InferenceResponse([], triton.TritonError(str(error)))
        return triton.InferenceResponse(
            [triton.Tensor(name, output) for name, output in zip(asked, outputs, strict=True)]
        )
