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
from typing import Any

import lazy_loader

from parity_models.errors import UserError, missing

__version__ = "0.2.0"

# ONNX Runtime 1.29 and newer report usage over the network unless this is set before they load.
# What a server runs is its owner's business; export ORT_DISABLE_TELEMETRY=0 to have it reported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    try:
        return _load(name)
    except ModuleNotFoundError as error:
        if said := missing(error):
            raise UserError(said) from error
        raise
