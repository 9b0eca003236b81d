"""An ONNX model of Triton, which takes this file for a model of its Python backend.

It runs the rows of all requests that Triton gives it as one batch.
"""

import os
import sys
from typing import Any


class TritonPythonModel:
    """The model.onnx next to this file, with an "input" and an "output"."""

    def initialize(self, args: dict[str, str]) -> None:
        sys.path.append(os.environ["PYTHONPATH"])  # which Triton's Python does not look at
        import ctypes

        import numpy as np
        import onnxruntime
        import triton_python_backend_utils as triton

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self._run = onnxruntime.InferenceSession(path, options).run
        self._triton, self._concatenate = triton, np.concatenate
        self._from_dlpack = np.from_dlpack
        self._set_destructor = ctypes.pythonapi.PyCapsule_SetDestructor
        self._set_destructor.argtypes = [ctypes.py_object, ctypes.c_void_p]

    def execute(self, requests: list[Any]) -> list[Any]:
        # Tensors go by DLPack: Triton's own conversions were built for NumPy 1.
        triton = self._triton
        inputs = (triton.get_input_tensor_by_name(each, "input") for each in requests)
        rows = list(map(self._from_dlpack, inputs))
        batch = rows[0] if len(rows) == 1 else self._concatenate(rows)
        (outputs,) = self._run(None, {"input": batch})
        answers, at = [], 0
        for each in rows:
            capsule = outputs[at : at + len(each)].__dlpack__()
            # Triton gives it a name that NumPy's destructor does not know.
            self._set_destructor(capsule, None)
            output = triton.Tensor.from_dlpack("output", capsule)
            answers.append(triton.InferenceResponse([output]))
            at += len(each)
        return answers
