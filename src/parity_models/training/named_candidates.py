"""Which stand-ins to try for a model with named inputs: networks say which queries they take."""

import torch

from parity_models.errors import TrainingError
from parity_models.models.bundle import Bundle
from parity_models.models.export import export_named
from parity_models.models.inference_time import inference_times
from parity_models.models.networks import NETWORKS, NamedNetwork
from parity_models.models.networks.queried import Queried
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.signature import Sizes
from parity_models.training.candidates import SLACK, Candidate
from parity_models.training.subject import Subject


def propose_named(
    deployed: Bundle, subject: Subject, told: Queried, sizes: Sizes
) -> tuple[list[Candidate], float]:
    """Backups that are not slower than the deployed model, the most capable first, and its
    milliseconds; all measured for queries of these `sizes`.

    The fastest is always among them. Raises TrainingError where no network can take the queries.
    """
    names = [
        name
        for kind in NETWORKS
        if issubclass(kind, NamedNetwork) and kind.takes(told)
        for name in kind.proposed
    ]
    if not names:
        raise TrainingError(
            f"no network of this package learns from {subject.signature}; train one of your own "
            "and bundle it (parm bundle --backup)"
        )
    file = deployed.manifest.deployed
    models = [OnnxModel(deployed.content(file), signature=file.signature)]
    models += [_untrained(name, subject, told) for name in names]
    base, *measured = inference_times(models, sizes=sizes)
    shares = [ms / base for ms in measured]
    found = [Candidate(name, None, share) for name, share in zip(names, shares, strict=True)]
    fast = [each for each in found if each.share <= SLACK]
    return fast[::-1] or [min(found, key=lambda each: each.share)], base


def _untrained(name: str, subject: Subject, told: Queried) -> OnnxModel:
    kind, options = NETWORKS.parse(name)
    assert issubclass(kind, NamedNetwork)
    with torch.random.fork_rng(devices=[]):
        module = kind.build_named(options, told, subject.output.shape)
    signature = subject.float32
    return OnnxModel(export_named(module.served(), signature), signature=signature)
