"""Erasure-coded resilience for prediction serving (Kosaian et al., SOSP 2019).

What most programs need is here; it is imported when it is first asked for, so that serving needs
nothing of what training needs. `__init__.pyi` says the types.
"""

import os
from importlib import import_module
from typing import Any

__version__ = "0.2.0"

__all__ = [
    "Bundle",
    "CodeSpec",
    "LoadSpec",
    "ParityModelsError",
    "Policy",
    "SchedulerConfig",
    "ServeOptions",
    "Server",
    "Settings",
    "Simulation",
    "UserError",
    "__version__",
    "accuracy_table",
    "evaluate",
    "offer_load",
    "open_bundle",
    "serve",
    "simulate",
    "train_backup",
    "train_parity",
]

_HOMES = {
    "Bundle": "parity_models.models.bundle",
    "CodeSpec": "parity_models.codes",
    "LoadSpec": "parity_models.load",
    "ParityModelsError": "parity_models.errors",
    "Policy": "parity_models.scheduling",
    "SchedulerConfig": "parity_models.scheduling",
    "ServeOptions": "parity_models.serving.server",
    "Server": "parity_models.serving.server",
    "Settings": "parity_models.training",
    "Simulation": "parity_models.simulation",
    "UserError": "parity_models.errors",
    "accuracy_table": "parity_models.evaluation",
    "evaluate": "parity_models.evaluation",
    "offer_load": "parity_models.load",
    "open_bundle": "parity_models.models.bundle",
    "serve": "parity_models.serving.server",
    "simulate": "parity_models.simulation",
    "train_backup": "parity_models.training",
    "train_parity": "parity_models.training",
}

# ONNX Runtime 1.29 and newer report usage over the network unless this is set before they load.
# What a server runs is its owner's business; export ORT_DISABLE_TELEMETRY=0 to have it reported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
