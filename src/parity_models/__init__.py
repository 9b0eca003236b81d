"""Erasure-coded resilience for prediction serving (Kosaian et al., SOSP 2019)."""

import os

__version__ = "0.1.0"

# ONNX Runtime 1.29 and newer report usage over the network unless this is set before they load.
# What a server runs is its owner's business; export ORT_DISABLE_TELEMETRY=0 to have it reported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
