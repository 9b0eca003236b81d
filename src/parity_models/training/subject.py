"""The deployed model as what imitates it sees it: its queries, and the one output to imitate."""

from dataclasses import dataclass, replace

import msgspec

from parity_models.errors import ModelError, UserError
from parity_models.models.bundle import Bundle
from parity_models.models.signature import Signature, Tensor
from parity_models.models.tensor import TensorSpec


@dataclass(frozen=True)
class Subject:
    """What is imitated: the signature of queries, and the `output`, which has a fixed shape.

    `plain`: queries are one float32 array of fixed shape, and there is no other output.
    """

    signature: Signature
    output: TensorSpec
    plain: bool

    @property
    def imitator(self) -> Signature:
        """The signature of a backup."""
        return self._giving(self.output.datatype)

    @property
    def float32(self) -> Signature:
        """That of a network, whose outputs are not converted yet."""
        return self._giving("FP32")

    def _giving(self, datatype: str) -> Signature:
        output = Tensor(self.output.name, datatype, self.output.shape)
        return msgspec.structs.replace(self.signature, outputs=(output,))


def subject_of(bundle: Bundle) -> Subject:
    """What stand-ins for the deployed model of `bundle` learn.

    Raises UserError where the bundle does not say which of several outputs that is, and ModelError
    for an output that cannot be imitated, or a model that has no free batch axis.
    """
    signature, output = bundle.manifest.deployed.signature, bundle.manifest.imitated_output
    if output is None:
        raise UserError(
            f"the model has the outputs {', '.join(each.name for each in signature.outputs)}; say "
            "which one stand-ins are to imitate, with --imitates NAME"
        )
    fixed = output.fixed
    if fixed is None or fixed.dtype.kind != "f":
        raise ModelError(
            f"the output {output} cannot be imitated: it has to be floating point, and of fixed "
            "shape"
        )
    if signature.batch:
        raise ModelError(
            f"the model takes {signature.batch} rows at once and no other number, so that it is "
            "served exact; export it with a free batch axis"
        )
    taken = signature.inputs[0]
    plain = (
        len(signature.inputs) == len(signature.outputs) == 1
        and taken.fixed is not None
        and taken.datatype == fixed.datatype == "FP32"
    )
    return Subject(signature, fixed, plain)


def imitating(bundle: Bundle, output: str | None) -> Bundle:
    """`bundle`, whose stand-ins imitate this output; None: the one that it says already.

    Raises UserError for an output that the model has not, and where stand-ins that are there
    imitate another.
    """
    manifest = bundle.manifest
    if output is None or output == manifest.imitated:
        return bundle
    names = [each.name for each in manifest.deployed.signature.outputs]
    if output not in names:
        raise UserError(f"the model has no output {output!r}; it has {', '.join(names)}")
    if manifest.imitated is not None and (manifest.parity or manifest.backups):
        raise UserError(
            f"the bundle has stand-ins for the output {manifest.imitated!r}; all of a bundle "
            "imitate one, so leave --imitates out or begin with a bundle without"
        )
    return replace(bundle, manifest=msgspec.structs.replace(manifest, imitated=output))
