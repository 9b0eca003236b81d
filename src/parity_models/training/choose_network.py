"""The network of a parity model where none is named.

A parity model that is slower than the deployed model makes its instances a bottleneck, so the
one chosen is the most capable that is not, by inference times measured here.
"""

from collections.abc import Callable

import torch

from parity_models.codes import Code
from parity_models.errors import TrainingError
from parity_models.models.bundle import Bundle
from parity_models.models.export import export, floats
from parity_models.models.inference_time import inference_times
from parity_models.models.onnx_model import OnnxModel
from parity_models.training.candidates import SLACK, ladder
from parity_models.training.parity_network import parity_network


def choose_network(
    deployed: Bundle, code: Code, is_slower: Callable[[str], bool] | None = None
) -> str:
    """The name of the most capable network for the code's parity queries that takes no longer
    than the deployed model for one query; the fastest if all take longer.

    `is_slower` says of a network by name whether it takes longer; by default it is measured.
    """
    names = [name for name in ladder(code.query_shape) if _takes(name, code)]
    slower = is_slower or _Measured(deployed, code)
    fits, above = 0, len(names)
    while above - fits > 1:
        middle = (fits + above) // 2
        if slower(names[middle]):
            above = middle
        else:
            fits = middle
    return names[fits]


class _Measured:
    """Is a network slower than the deployed model?"""

    def __init__(self, deployed: Bundle, code: Code) -> None:
        self._reference = OnnxModel(deployed.deployed_path)
        self._code = code

    def __call__(self, name: str) -> bool:
        with torch.random.fork_rng(devices=[]):
            network = parity_network(name, self._code).build()
        candidate = OnnxModel(export(network, [floats(self._code.parity_shape)]))
        ours, theirs = inference_times([candidate, self._reference])
        return ours > SLACK * theirs


def _takes(name: str, code: Code) -> bool:
    try:
        with torch.device("meta"):  # without weights
            parity_network(name, code).build()
    except TrainingError:
        return False
    return True
