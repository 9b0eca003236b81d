"""Which stand-ins to try for a model with named inputs: networks say which queries they take."""

import torch

from parity_models.codes import CodeSpec
from parity_models.errors import TrainingError
from parity_models.models.bundle import Bundle
from parity_models.models.export import export
from parity_models.models.inference_time import inference_times
from parity_models.models.networks import NETWORKS, GroupNetwork, NamedNetwork
from parity_models.models.networks.queried import Queried
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.signature import Sizes
from parity_models.training.candidates import SLACK, Candidate
from parity_models.training.stacked import STACKED, check_stacked, exported_group
from parity_models.training.stand_in_network import group_network
from parity_models.training.subject import Subject

TOGETHER = CodeSpec("stack", "separate", 2, encoder_options=STACKED)
"""The code that networks for several queries at once are tried with."""


def propose_named(
    deployed: Bundle, subject: Subject, told: Queried, sizes: Sizes
) -> tuple[list[Candidate], float]:
    """Backups that are not slower than the deployed model, the most capable first, then networks
    for several queries at once, and the model's milliseconds; all measured for queries of these
    `sizes`.

    The fastest backup is always among them. Raises TrainingError where no network can take the
    queries.
    """
    names = [
        name for kind in NETWORKS if issubclass(kind, NamedNetwork) for name in kind.proposals(told)
    ]
    if not names:
        raise TrainingError(
            f"no network of this package learns from {subject.signature}; train one of your own "
            "and bundle it (parm bundle --backup)"
        )
    file = deployed.manifest.deployed
    models = [OnnxModel(deployed.content(file), signature=file.signature)]
    models += [_untrained(name, subject, told) for name in names]
    groups = [each.name for each in NETWORKS if issubclass(each, GroupNetwork) and each.takes(told)]
    models += [_untrained_group(name, subject, told) for name in groups]
    base, *measured = inference_times(models, sizes=sizes)
    shares = [ms / base for ms in measured]
    backups = [Candidate(name, None, share) for name, share in zip(names, shares, strict=False)]
    coded = [
        Candidate(name, TOGETHER, share)
        for name, share in zip(groups, shares[len(names) :], strict=True)
    ]
    fast = [each for each in backups if each.share <= SLACK]
    return (fast[::-1] or [min(backups, key=lambda each: each.share)]) + coded, base


def _untrained(name: str, subject: Subject, told: Queried) -> OnnxModel:
    kind, options = NETWORKS.parse(name)
    assert issubclass(kind, NamedNetwork)
    with torch.random.fork_rng(devices=[]):
        module = kind.build_named(options, told, subject.output.shape)
    signature = subject.float32
    return OnnxModel(
        export(module.served(), signature.inputs, signature.outputs[0].name), signature=signature
    )


def _untrained_group(name: str, subject: Subject, told: Queried) -> OnnxModel:
    code = check_stacked(TOGETHER, subject)
    with torch.random.fork_rng(devices=[]):
        module = group_network(name, subject, lambda: told, code.k).make()
    made = exported_group(module, name, subject, "logits", code).models[0]
    return OnnxModel(made.onnx, signature=made.signature)
