"""Erasure-coded resilience for prediction serving (Kosaian et al., SOSP 2019).

    import numpy as np, parity_models as pm

    rows = np.load("inputs.npy")
    bundle = pm.protect("model.onnx", rows, out="bundle", minutes=2)
    print(bundle.gates)
    with pm.serve(bundle, instances=4) as server:
        print(server.predict(rows[:2]).sources)

Each function is called by the command of the same name. Names are imported when they are first
used, so serving does not import what only training needs. `__init__.pyi` has the types.
"""

import os
from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_HOMES = {
    "codes": ("CodeSpec",),
    "errors": ("ParityModelsError", "UserError"),
    "evaluation.judging": ("Evaluation", "calibrate", "evaluate"),
    "late.late": ("Late", "LateAnswer"),
    "load": ("LoadSpec", "offer_load"),
    "models.bundle": ("Bundle", "open_bundle"),
    "protection.comparison": ("Comparison", "simulate"),
    "protection.plan": ("Goal", "Plans", "plan"),
    "protection.protect": ("Protected", "SearchOptions", "protect"),
    "protection.rehearse": ("Rehearsal", "rehearse"),
    "protection.scene": ("SimulationOptions",),
    "progress": ("Callbacks", "progress_bars"),
    "scheduling.choice": ("PolicyChoice",),
    "scheduling.policies": (
        "Adaptive",
        "ApproximateBackup",
        "Cascade",
        "EqualResources",
        "Hedging",
        "NoRedundancy",
        "Parity",
        "Policy",
        "Replication",
    ),
    "serving.server": ("ServeOptions", "Server", "serve"),
    "training": ("Trained", "TrainingOptions", "backup", "parity"),
}
"""The names that are exported, by their module."""

_MODULES = {name: f"parity_models.{home}" for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_MODULES]

# ONNX Runtime 1.29 and newer report usage over the network unless this is set before they load.
# What a server runs is its owner's business; export ORT_DISABLE_TELEMETRY=0 to have it reported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
