"""The cluster resources that an application on Ray uses, and how it is scaled."""

from dataclasses import dataclass
from typing import Annotated

from parity_models.errors import OptionError
from parity_models.options import SECONDS, Amounts, Option, Options


@dataclass(frozen=True, kw_only=True)
class ClusterOptions(Options):
    """The cluster, what of it an application takes, and how it is scaled.

    With `max_instances`, the deployed model's instances are scaled between their number in
    ServeOptions and that, the extra ones between theirs and `max_parity_instances`, so that
    instances are busy for `target_utilisation` of the time. Raises UserError for values out of
    range.
    """

    address: Annotated[
        str | None,
        Option(
            "The cluster, as HOST:PORT of its head node, or auto on a node of it; by default one "
            "is started on this machine.",
            metavar="ADDRESS",
        ),
    ] = None
    frontends: Annotated[
        int, Option("Frontends, each with coding groups and instances of its own.", at_least=1)
    ] = 1
    max_instances: Annotated[
        int | None,
        Option(
            "As many instances as this when they are busy for more than the target utilisation, "
            "and fewer again when not; by default always --instances.",
            at_least=1,
        ),
    ] = None
    max_parity_instances: Annotated[
        int | None,
        Option(
            "As many of the further instances; by default in the same proportion as "
            "--max-instances.",
            at_least=0,
        ),
    ] = None
    target_utilisation: Annotated[
        float,
        Option(
            "The share of the time for which instances are to be busy.",
            above=0,
            at_most=1,
            metavar="SHARE",
        ),
    ] = 0.7
    upscale_delay: Annotated[
        float,
        Option(
            "How long utilisation is looked at before there are more instances.",
            unit=SECONDS,
            typed="s",
            at_least=0,
        ),
    ] = 10.0
    downscale_delay: Annotated[
        float,
        Option("Likewise, before there are fewer.", unit=SECONDS, typed="s", at_least=0),
    ] = 300.0
    cpus_per_instance: Annotated[
        float, Option("CPUs that Ray reserves for an instance.", at_least=0)
    ] = 1.0
    cpus_per_frontend: Annotated[float, Option("Likewise, for a frontend.", at_least=0)] = 1.0
    resources_per_instance: Annotated[
        Amounts | None,
        Option("Further resources that Ray reserves for an instance, as nodes name them."),
    ] = None
    resources_per_frontend: Annotated[Amounts | None, Option("Likewise, for a frontend.")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_parity_instances is not None and self.max_instances is None:
            raise OptionError(
                lambda spell: (
                    f"{spell('max_parity_instances')} needs {spell('max_instances')} beside it"
                )
            )
