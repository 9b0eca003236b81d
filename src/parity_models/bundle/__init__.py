"""The bundle that is served: its manifest and its ONNX models, on disk and in ONNX Runtime."""
