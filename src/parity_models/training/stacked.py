"""Parity models over named inputs: k queries stacked along a new axis, and each answered apart."""

import msgspec
from torch import nn

from parity_models.codes import Code, CodeSpec, NamedShape
from parity_models.errors import CodeError, TrainingError
from parity_models.models.bundle import NewModel
from parity_models.models.bundle_fit import code_over, parity_inputs
from parity_models.models.export import export
from parity_models.models.networks.network import NamedModule
from parity_models.models.signature import Signature
from parity_models.models.signature import Tensor as Output
from parity_models.tasks.output_kind import OutputKind
from parity_models.training.backup import served_as
from parity_models.training.parity import ParityModels
from parity_models.training.subject import Subject

STACKED = {"new_axis": True}
"""The options of the stack encoder that joins queries of any shape and type."""


def check_stacked(spec: CodeSpec, subject: Subject) -> Code:
    """The code, if there can be parity models for it."""
    code = code_over(spec, subject.signature, subject.output.shape)
    queries = subject.signature.smallest.input
    code.encode([queries.split(queries.zeros(0))] * code.k)  # no rows: types count
    stacked: list[NamedShape] = [(code.k, *each.shape) for each in subject.signature.inputs]
    along_first = code.stacked_axis == 0
    along_new = list(code.parity_shapes.values()) == stacked
    if not (along_first and along_new and code.decoder.reads_off):
        raise CodeError(
            "for queries of named inputs parity models are trained for the stack encoder along a "
            "new first axis and the separate decoder: use --encoder stack --new-axis --decoder "
            "separate"
        )
    if spec.r > 1:
        raise CodeError(
            "one parity model gives every slot apart, so that more add nothing: use r=1"
        )
    return code


def exported_group(
    module: nn.Module, network: str, subject: Subject, kind: OutputKind, code: Code
) -> ParityModels:
    """The parity model of `code` (see `check_stacked`) that is a trained network for k queries at
    once, called `network`. Its answers are of `kind`."""
    if not isinstance(module, NamedModule):
        raise TrainingError(f"{network} makes no module for named inputs; choose another")
    signature = parity_signature(code, subject)
    content = export(served_as(module, subject, kind), signature.inputs, subject.output.name)
    return ParityModels([NewModel(content, network, signature=signature)], {}, None)


def parity_signature(code: Code, subject: Subject) -> Signature:
    """What the parity model of a code takes and gives."""
    output = subject.output
    return msgspec.structs.replace(
        subject.signature,
        inputs=parity_inputs(code, subject.signature),
        outputs=(Output(output.name, output.datatype, code.parity_output_shape),),
    )
