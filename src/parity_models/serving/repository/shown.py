"""What the live page shows of a repository: its models, what became of their versions, and each
version that runs as a server of its own."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from parity_models.serving.page.feed import Feed
from parity_models.serving.page.frames import ModelEvent, ModelsFrame, ModelView, VersionView
from parity_models.serving.page.routes import Side
from parity_models.serving.repository.rollout import Rollout

KEPT = 200
"""Events that are remembered."""


class History:
    """What has become of versions of models, the latest of it. `clock` gives seconds since 1970."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._events: deque[ModelEvent] = deque(maxlen=KEPT)
        self.last = 0
        """The number of the latest event."""

    def happened(self, model: str, version: str, kind: str, text: str) -> None:
        """Something became of a version, `text` for people."""
        self.last += 1
        self._events.append(ModelEvent(self.last, self._clock(), model, version, kind, text))

    def after(self, number: int) -> tuple[ModelEvent, ...]:
        """The events that are remembered with higher numbers, oldest first."""
        return tuple(event for event in self._events if event.number > number)


class ShownModel:
    """What is shown of the model called `name`, whose `rollout` says how its versions are."""

    def __init__(self, name: str, rollout: Rollout, history: History) -> None:
        self._name = name
        self._rollout = rollout
        self._history = history
        self._told = rollout.traffic
        self._feeds: dict[str, Feed] = {}

    def starts(self, version: str, feed: Feed) -> None:
        """A version is started, and can be watched from now on."""
        self._feeds[version] = feed
        feed.start()

    def ends(self, version: str) -> None:
        """A version has ended, and can be watched no more."""
        feed = self._feeds.pop(version, None)
        if feed is not None:
            feed.close()

    def end(self) -> None:
        """Nothing can be watched any more."""
        for version in list(self._feeds):
            self.ends(version)

    def happened(self, version: str, kind: str, what: str) -> None:
        """Something became of a version."""
        self._history.happened(self._name, version, kind, f"version {version} {what}")

    def traffic_may_have_changed(self) -> None:
        """Say who takes requests, if that is another one than before."""
        before, after = self._told, self._rollout.traffic
        self._told = after
        if after == before:
            return
        if after.canary is not None:
            self.happened(after.canary, "canary", f"is a canary, for {after.share:.3g} of requests")
        elif after.current is not None:
            self.happened(after.current, "current", "takes all requests")

    @property
    def view(self) -> ModelView:
        """What is shown of it now. Reads no file: that would delay requests."""
        rollout = self._rollout
        current, canary, _ = rollout.traffic
        roles = {current: "current", canary: "canary"}
        shares = rollout.traffic.shares
        return ModelView(
            self._name,
            tuple(
                VersionView(
                    version,
                    roles.get(version, ""),
                    rollout.phase(version),
                    rollout.reason(version),
                    shares.get(version, 0.0),
                    version in self._feeds,
                )
                for version in sorted(rollout.states, key=int)
            ),
        )

    def feed(self, version: str | None) -> Feed | None:
        """Frames of a version, the current one by default, while it runs."""
        return self._feeds.get(version or self._rollout.current or "")


class ModelsSampler:
    """Makes frames of how `models` are, asked when one is made, and of their `history`."""

    def __init__(self, models: Callable[[], Sequence[ModelView]], history: History) -> None:
        self._models = models
        self._history = history
        self._last_event = 0

    def tick(self) -> None:
        """Nothing has to be looked at while nobody watches."""

    def frame(self, *, whole: bool) -> ModelsFrame:
        """How they are now, and what happened since the last frame that was not `whole`, or all
        that is remembered."""
        after = 0 if whole else self._last_event
        if not whole:
            self._last_event = self._history.last
        return ModelsFrame(time.time(), tuple(self._models()), self._history.after(after))


class ShownModels:
    """What a page shows of a repository: `feed_of` finds that of a model's version."""

    sides: tuple[Side, ...] = ()
    models = "events?of=models"

    def __init__(
        self, models: Feed, feed_of: Callable[[str | None, str | None], Feed | None]
    ) -> None:
        self._models = models
        self._feed_of = feed_of

    def feed(self, asked: Mapping[str, str]) -> Feed | None:
        """That of the models, of a version, of a model's current one or of the first model's."""
        if asked.get("of") == "models":
            return self._models
        return self._feed_of(asked.get("model"), asked.get("version"))
