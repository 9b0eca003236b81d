"""The options of commands that serve a bundle: the engine, the policy, and what a server takes."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from parity_models.cli.extensions import OWN, given_options, naming, spelling_in
from parity_models.cli.policy import choose_policy, policy_options
from parity_models.errors import OptionError, UserError
from parity_models.faults import load_fault_plan
from parity_models.models.bundle import Bundle
from parity_models.serving.access import Access
from parity_models.serving.deployment import default_policy
from parity_models.serving.engine import FIXED
from parity_models.serving.engines import ENGINES, EngineChoice, choose_engine
from parity_models.serving.limits import Limits
from parity_models.serving.local.local_engine import LocalEngine
from parity_models.serving.options import ServeOptions
from parity_models.serving.remote.remote_engine import RemoteEngine

EngineName = Annotated[
    str | None,
    typer.Option(
        help="What runs the models: worker processes of this machine (local, the default), "
        "servers that run already (remote, the default with --deployed), a Ray cluster (ray), "
        f"{OWN}.",
        metavar="ENGINE",
        show_default=False,
        callback=naming(ENGINES),
    ),
]
DefaultPrediction = Annotated[
    str | None,
    typer.Option(
        help="Answer queries with this at their deadline, instead of failing them: the "
        "values of an output row, separated by commas, or one value for all of it.",
        metavar="VALUES",
    ),
]
Faults = Annotated[
    str | None,
    typer.Option(
        help="Slow, pause and kill workers on purpose, by this plan, from when "
        "the server is ready (docs/reference/faults.md).",
        metavar="FILE",
    ),
]


def options_of_server(
    context: typer.Context,
    bundle: Bundle | None,
    *,
    engine: EngineChoice,
    policy: str | None,
    dispatch: str | None,
    default_prediction: str | None,
    faults: str | None = None,
    **fixed: Any,
) -> ServeOptions:
    """How the command line says that `bundle` is to be served; `fixed` is what it does not say.

    Of several bundles, None, each has its own default policy, if none is named. Raises UserError
    for options that cannot be, or say nothing with the engine.
    """
    given = given_options(context, "serve")
    access = given_options(context, "access")
    logging = given_options(context, "logging")
    of_policy = policy_options(context)
    choice = None
    _refuse_what_is_not_for(engine, bundle, {**given, **access, **logging})
    if bundle is not None:
        policy = policy or default_policy(bundle, engine)
    if policy is not None:
        choice = choose_policy(policy, of_policy, dispatch, spelling_in(context))
    elif of_policy or dispatch is not None:
        option = next(iter(of_policy), "dispatch")
        raise OptionError(
            lambda spell: f"{spell(option)} needs --policy beside it, with --repository"
        )
    return ServeOptions(
        **given,
        **fixed,
        policy=choice,
        engine=engine,
        limits=Limits(**given_options(context, "limits")),
        access=Access(**access),
        default_prediction=_numbers(default_prediction),
        faults=load_fault_plan(faults) if faults is not None else None,
    )


def chosen_engine(context: typer.Context, name: str | None) -> EngineChoice:
    """The engine with the options given on the command line."""
    given = given_options(context, "engine")
    usual = RemoteEngine if "deployed" in given else LocalEngine
    return choose_engine(name or usual.name, given, spelling_in(context))


def _refuse_what_is_not_for(
    engine: EngineChoice, bundle: Bundle | None, given: Mapping[str, Any]
) -> None:
    """Raise UserError for options that have no effect with this engine."""
    refused = engine.kind.refuses
    if bundle is not None and engine.kind.fixed_roles(engine.settings, bundle) is not None:
        refused = {**refused, **FIXED}
    unused = [option for option in refused if option in given]
    if unused:
        raise OptionError(
            lambda spell: (
                f"leave {spell(unused[0])} out with the engine {engine.name}: {refused[unused[0]]}"
            )
        )


def _numbers(text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(map(float, text.split(",")))
    except ValueError:
        raise UserError(
            f"--default-prediction takes numbers separated by commas, not {text!r}"
        ) from None
