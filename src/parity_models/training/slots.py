"""Training parity models over named inputs: k queries stacked, and a network that answers each.

Nothing is lost in a stack. With a network for single queries nothing is computed together either:
a parity model is k runs of a backup in one. What a code adds then is that the k queries travel,
wait and are batched as one. A network for k queries at once computes with all of them together.
"""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor, nn

from parity_models.codes import Code, CodeSpec
from parity_models.errors import TrainingError
from parity_models.models.bundle import Bundle, NewModel
from parity_models.models.export import export
from parity_models.models.networks.network import NamedModule
from parity_models.models.queries import commonest
from parity_models.tasks.output_kind import OutputKind
from parity_models.training.backup import exported_backup, imitate, served_as
from parity_models.training.candidates import SLACK
from parity_models.training.named_candidates import propose_named
from parity_models.training.parity import ParityModels, with_parity
from parity_models.training.run import Outcome, Settings
from parity_models.training.stacked import check_stacked, exported_group, parity_signature
from parity_models.training.stand_in_network import is_group, queried
from parity_models.training.subject import Subject, subject_of


class Slots(nn.Module):
    """Takes k queries (n, k, *shape) of each input, gives (n, k, ...), what `network` says of
    each."""

    def __init__(self, network: nn.Module, k: int) -> None:
        super().__init__()
        self._network = network
        self._k = k

    def forward(self, *inputs: Tensor) -> Tensor:
        outputs: Tensor = self._network(*(each.flatten(0, 1) for each in inputs))
        return outputs.reshape(-1, self._k, *outputs.shape[1:])


def train_slots(
    bundle: Bundle,
    spec: CodeSpec,
    network: str | None,
    inputs: NDArray[Any],
    out: Path,
    settings: Settings | None = None,
    *,
    metric: str | None = None,
    output_kind: str | None = None,
) -> Outcome:
    """Train the parity model of the code `spec` for the deployed model of `bundle`, whose queries
    `inputs` are rows of one kind of its signature.

    `network` is one for k queries at once, or for single queries; by default the most capable of
    these of which k take no longer than the deployed model. Writes to `out` that model, the parity
    model, and of a network for single queries that as a backup.
    Raises CodeError for other codes than a stack along a new first axis with separate outputs, and
    errors as `train_backup` does.
    """
    subject = subject_of(bundle)
    code = check_stacked(spec, subject)
    network = network or default_slot(bundle, subject, inputs, code.k)
    learned = imitate(
        bundle,
        network,
        inputs,
        out,
        settings or Settings(),
        validation=None,
        metric=metric,
        output_kind=output_kind,
        mirrored=False,
        least=code.k,
        together=code if is_group(network) else None,
    )
    module, kind = learned.module, learned.lessons.output_kind
    if is_group(network):
        made = exported_group(module, network, subject, kind, code)
    else:
        alone = exported_backup(module, network, subject, kind)
        made = exported_slots(module, alone, subject, kind, code)
    sizes = commonest(inputs, subject.signature)
    written = with_parity(bundle, out, code, made, learned.lessons, learned.training, sizes)
    return learned.run.end(written, learned.fitted)


def exported_slots(
    module: nn.Module, alone: NewModel, subject: Subject, kind: OutputKind, code: Code
) -> ParityModels:
    """The parity model of `code` (see `check_stacked`) that runs a trained backup in each slot, and
    that backup by itself, exported as `alone`. Its answers are of `kind`.

    Raises TrainingError for a module that takes no named inputs.
    """
    network = alone.network
    if not isinstance(module, NamedModule):
        raise TrainingError(f"{network} makes no module for named inputs; choose another")
    signature = parity_signature(code, subject)
    served = Slots(served_as(module, subject, kind), code.k)
    model = NewModel(
        export(served, signature.inputs, signature.outputs[0].name),
        network,
        slotwise=True,
        signature=signature,
    )
    slot = NewModel(alone.onnx, f"{network}, one slot", slot=True, signature=alone.signature)
    return ParityModels([model], {}, slot)


def default_slot(bundle: Bundle, subject: Subject, inputs: NDArray[Any], k: int) -> str:
    """The most capable network of which k runs take no longer than the deployed model; the fastest
    if all take longer."""
    sizes = commonest(inputs, subject.signature)
    proposed, _ = propose_named(bundle, subject, queried(bundle, inputs), sizes)
    candidates = [each for each in proposed if each.code is None]
    fast = [each for each in candidates if k * each.share <= SLACK]
    return (fast or candidates[-1:])[0].network
