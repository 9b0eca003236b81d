"""A canary's requests: asked of the new and of the old version, answered by one of them, compared.

Clients get the old version's answer if the new one fails or takes much longer, so no client suffers
from a canary. It costs its share of the requests: the old version is asked all of them as before.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from parity_models.errors import ServingError
from parity_models.models.bundle import Bundle
from parity_models.models.tensor import tensors_in
from parity_models.scheduling import Source
from parity_models.serving.asked import Answers, Asked
from parity_models.serving.errors import RequestError
from parity_models.serving.frontend import Frontend, now
from parity_models.serving.models import ServedVersion
from parity_models.serving.repository.evidence import Seen
from parity_models.serving.served_model import InferRequest, ServedModel
from parity_models.tasks.agreeing import Agreement

PATIENCE = 0.1
"""The old version's answer waits for the canary's for this many seconds, or for as long as the old
version took if that is longer."""


def agreement_of(bundle: Bundle) -> Agreement:
    """The rule by which two versions agree: that of the old one's stand-ins, or the same class."""
    for calibration in (bundle.manifest.calibration or {}).values():
        return Agreement(calibration.kind, calibration.tolerance)
    return Agreement("classes", 0.0)


def check_tensors(new: ServedModel, old: ServedModel, version: str) -> None:
    """Raises ServingError for a canary that cannot answer requests of the `old` version."""
    if new.signature != old.signature:
        raise ServingError(
            f"its tensors are not those of version {version}, so that no request fits both; "
            "load it without a canary"
        )


class Canary(ServedVersion):
    """Answers the requests of the canary's share: from `new`, or from `old` where that fails. `saw`
    is told of each request once both versions have ended it.
    """

    def __init__(
        self,
        new: ServedVersion,
        old: ServedVersion,
        frontends: tuple[Frontend, Frontend],
        agrees: Agreement,
        saw: Callable[[Seen], None],
    ) -> None:
        super().__init__(new.frontend, new.model, new.metrics)
        self._old = old.model
        self._frontends = frontends
        self._agrees = agrees
        self._saw = saw

    async def answer(
        self, asked: InferRequest, timeout: float | None
    ) -> tuple[ServedModel, Answers]:
        pair = _Pair(*(_ask(each, asked, timeout) for each in self._frontends))
        try:
            if not await pair.new_answers():
                return self._old, await pair.old.future
            return self.model, pair.new.future.result()
        except asyncio.CancelledError:
            for frontend, each in zip(self._frontends, (pair.new, pair.old), strict=True):
                if each.asked is not None:
                    frontend.abandon(each.asked)
            raise
        finally:
            pair.when_both_have_ended(self._compare)

    def _compare(self, new: Answers | None, old: Answers | None) -> None:
        compared = differed = 0
        if new is not None and old is not None:
            rows = [
                row
                for row, sources in enumerate(zip(new.sources, old.sources, strict=True))
                if all(source is Source.MODEL for source in sources)
            ]
            one, other = (tensors_in(each.outputs[rows])[0] for each in (new, old))
            compared = len(rows)
            if compared:
                differed = compared - int(self._agrees(one, other).sum())
        self._saw(Seen(new is None, old is None, compared, differed))


class _Half:
    """A request as it was asked of one of the two."""

    def __init__(self, asked: Asked | None, future: asyncio.Future[Answers]) -> None:
        self.asked = asked
        self.future = future

    @property
    def answers(self) -> Answers | None:
        if not self.future.done() or self.future.cancelled() or self.future.exception():
            return None
        return self.future.result()


class _Pair:
    def __init__(self, new: _Half, old: _Half) -> None:
        self.new = new
        self.old = old
        self._late = False

    async def new_answers(self) -> bool:
        """Should the new version answer? Waits until that is known."""
        both = (self.new.future, self.old.future)
        began = now()
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not self.new.future.done():
            await asyncio.wait(both[:1], timeout=max(PATIENCE, now() - began))
        if self.new.answers is not None:
            return True
        if self.new.future.done():
            await asyncio.wait(both[1:])
            return self.old.answers is None
        self._late = self.old.answers is not None
        if not self._late:
            await asyncio.wait(both[:1])
        return not self._late

    def when_both_have_ended(self, tell: Callable[[Answers | None, Answers | None], None]) -> None:
        """Report both answers; None for a version that has none or was late."""
        left = {self.new.future, self.old.future}

        def ended(future: asyncio.Future[Answers]) -> None:
            with suppress(asyncio.CancelledError):
                future.exception()  # it has been seen
            left.discard(future)
            if not left and not any(each.future.cancelled() for each in (self.new, self.old)):
                tell(None if self._late else self.new.answers, self.old.answers)

        for future in tuple(left):
            future.add_done_callback(ended)


def _ask(frontend: Frontend, asked: InferRequest, timeout: float | None) -> _Half:
    try:
        found = frontend.ask(asked.rows, timeout, tenant=asked.tenant, exact=asked.exact)
    except RequestError as error:
        future: asyncio.Future[Answers] = asyncio.get_running_loop().create_future()
        future.set_exception(error)
        return _Half(None, future)
    return _Half(found, found.future)
