"""A bundle's models on the instances of an engine, and the frontend over them."""

import asyncio
from typing import TYPE_CHECKING

from parity_models.errors import OptionError, UserError
from parity_models.models.bundle import Bundle
from parity_models.scheduling import DEPLOYED
from parity_models.serving.engine import Parts
from parity_models.serving.golden import Golden, golden_of
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import ServedVersion
from parity_models.serving.options import ServeOptions
from parity_models.serving.page.feed import Feed
from parity_models.serving.page.watch import feed_of
from parity_models.serving.plan import Plan, model_files
from parity_models.serving.served_model import VERSION

if TYPE_CHECKING:
    from parity_models.serving.tracing import Tracing


class Hosted:
    """A bundle that is served, by a frontend of its own over an engine of its own.

    `policy` is the policy's name, `roles` what each instance runs, `model` the deployed model as
    clients see it, and `notes` what a user may not expect; `feed` is what a live page shows of it,
    if there is to be one. `version` None: there is but this one. `starts_at_once` as in Parts.
    `tracing` makes spans of what happens to queries. Raises UserError for options that do not fit
    the bundle.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: ServeOptions,
        version: str | None = None,
        starts_at_once: int | None = None,
        tracing: "Tracing | None" = None,
    ) -> None:
        plan = Plan(bundle, options, version or VERSION)
        self.policy, self.roles, self.model = plan.choice.name, plan.roles, plan.model
        self.notes = plan.notes
        if options.faults is not None:
            options.faults.check(len(self.roles))
        if options.placements and len(options.placements) != len(self.roles):
            raise UserError(
                f"there are {len(options.placements)} placements for {len(self.roles)} instances"
            )
        deployed = sum(DEPLOYED in each for each in self.roles)
        if options.min_ready > deployed:
            raise OptionError(
                lambda spell: (
                    f"{spell('min_ready')} is {options.min_ready}, but there are {deployed} "
                    "instances of the deployed model: the server would never be ready"
                )
            )
        self._faults = options.faults
        self.metrics = Metrics(bundle.digest)
        self.bundle = bundle
        self._models = {role: bundle.pinned(model) for role, model in model_files(bundle).items()}
        self._golden: dict[str, Golden] = {}
        parts = Parts(
            bundle=bundle,
            models=self._models,
            metrics=self.metrics,
            max_batch=plan.max_batch,
            unit_timeout=options.unit_timeout,
            placements=options.placements,
            allows_faults=options.faults is not None,
            starts_at_once=starts_at_once,
        )
        self.engine = options.engine.kind.build(options.engine.settings, parts)
        self.frontend = plan.frontend(self.engine, self.metrics, self._golden)
        if tracing is not None:
            tracing.observe(self.frontend, self.model)
        self.feed: Feed | None = None
        if options.ui:
            title = self.model.name + ("" if version is None else f" version {version}")
            self.feed = feed_of(self.frontend, model=title, policy=self.policy)

    def begin_faults(self) -> None:
        """Let the time of the options' fault plan begin now; without one, nothing happens."""
        if self._faults is not None:
            self.engine.inject_faults(self._faults)

    async def start(self) -> None:
        """Start all instances; returns when they are warm and verified.

        Raises ServingError, with nothing left running, if one does not start.
        """
        if self.feed is not None:
            self.feed.start()
        self._golden |= await asyncio.to_thread(golden_of, self.bundle, self._models, self.roles)
        await self.frontend.start(self.roles)

    async def drain(self) -> None:
        """End the live feed, and take no more queries; returns when those under way have ended."""
        self.close_feed()
        await self.frontend.drain()

    async def stop(self) -> None:
        """Stop all instances at once."""
        self.close_feed()
        await self.frontend.stop()

    def close_feed(self) -> None:
        """End the live feed, if there is one."""
        if self.feed is not None:
            self.feed.close()


class HostedVersion(ServedVersion):
    """A bundle that is served as a version of a model."""

    def __init__(self, hosted: Hosted) -> None:
        super().__init__(hosted.frontend, hosted.model, hosted.metrics)
        self.hosted = hosted
