"""Erasure-coded resilience for prediction serving (Kosaian et al., SOSP 2019).

    import numpy as np, parity_models as pm

    rows = np.load("inputs.npy")
    bundle = pm.protect("model.onnx", rows, out="bundle", minutes=2)
    print(bundle.gates)
    with pm.serve(bundle, instances=4) as server:
        print(server.predict(rows[:2]).sources)

Each command calls one of the functions. The names are declared in `__init__.pyi`,
and imported when they are first used, so serving does not import what only training needs.
"""

import os
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from parity_models.errors import UserError, missing

__version__ = "0.2.0"

_STUB = Path(__file__).with_suffix(".pyi").read_text()
_EXPORTED = r"from (?P<module>\S+) import (?P<name>\w+) as"
_DEFINED = r"def (?P<name>\w+)\(  # (?P<module>\S+)"
_MODULES = {
    each["name"]: each["module"]
    for pattern in (_EXPORTED, _DEFINED)
    for each in re.finditer(pattern, _STUB)
}

__all__ = ["__version__", *_MODULES]

# ONNX Runtime 1.29 and newer report usage over the network unless this is set before they load.
# What a server runs is its owner's business; export ORT_DISABLE_TELEMETRY=0 to have it reported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_MODULES[name]), name)
    except ModuleNotFoundError as error:
        if said := missing(error):
            raise UserError(said) from error
        raise


def __dir__() -> list[str]:
    return __all__
