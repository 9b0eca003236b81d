"""Triton's ONNX Runtime backend in Python, for a Triton that comes without the one in C++.

Triton takes the folder that this file is in as the backend of that folder's name.
"""

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

sys.path.append(os.environ["PYTHONPATH"])  # which Triton's Python does not look at

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton

_forget_destructor = ctypes.pythonapi.PyCapsule_SetDestructor
_forget_destructor.argtypes = [ctypes.py_object, ctypes.c_void_p]


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
        # By DLPack: Triton's own conversions were built for NumPy 1.
        rows = {
            name: np.from_dlpack(triton.get_input_tensor_by_name(request, name))
            for name in self._inputs
        }
        asked = request.requested_output_names()
        try:
            outputs = self._session.run(asked, rows)
        except Exception as error:
            return triton.InferenceResponse([], triton.TritonError(str(error)))
        return triton.InferenceResponse(list(map(_tensor, asked, outputs)))


def _tensor(name: str, output: Any) -> Any:
    capsule = output.__dlpack__()
    # Triton takes the tensor, and gives the capsule a name that NumPy's destructor does not know.
    _forget_destructor(capsule, None)
    return triton.Tensor.from_dlpack(name, capsule)
