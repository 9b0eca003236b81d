"""Which versions of one model run, and which of them takes a request. Sans-I/O: events in, actions
out, and time is an argument.

    unavailable ──load──▶ loading ──loaded──▶ ready ──stop──▶ unloading ──stopped──▶ unavailable
         ▲                   │ failed
         └───────────────────┘

Of those that are ready, one is the *current* version, and one may be the *canary*: it takes a share
of the requests until there is enough evidence. What follows from these rules:

- Once a version is current, there is one until the model is unloaded.
- A version takes requests only while it is ready: never before it is loaded, nor once it stops.
- Everything that is started is stopped once, unless it fails to start or still takes requests.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from parity_models.serving.repository.evidence import Evidence, Seen
from parity_models.serving.repository.rollout_options import RolloutOptions


class Phase(StrEnum):
    """Where a version is in its life, in Triton's words."""

    UNAVAILABLE = "UNAVAILABLE"
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"


class Start(NamedTuple):
    """Load this version and warm it."""

    version: str


class Stop(NamedTuple):
    """Let this version answer what it was asked, and end it."""

    version: str


Actions = list[Start | Stop]


class Traffic(NamedTuple):
    """The versions that take requests, and the share of them that the canary takes."""

    current: str | None
    canary: str | None
    share: float

    @property
    def shares(self) -> dict[str, float]:
        """The share of requests that each takes, the current one first."""
        shares = {} if self.current is None else {self.current: 1 - self.share}
        return shares if self.canary is None else shares | {self.canary: self.share}


@dataclass
class State:
    """What the index says of a version."""

    phase: Phase
    reason: str = ""


class Rollout:
    """The versions of a model; those that nothing was asked of are unknown here."""

    def __init__(self, options: RolloutOptions) -> None:
        self._options = options
        self.states: dict[str, State] = {}
        self.current: str | None = None
        self.canary: str | None = None
        self.evidence: Evidence | None = None
        self.share = 0.0
        """The share of requests that the canary takes."""
        self._owed = 0.0
        self._shares: dict[str, float | None] = {}

    # Events

    def load(self, version: str, share: float | None) -> Actions:
        """Serve this version; beside a current one, with this `share` of requests at first.

        Loading the current version ends the canary, and loading the canary without a share makes
        it current. One that is being loaded or unloaded is left to that.
        """
        phase = self.phase(version)
        if phase is Phase.UNAVAILABLE:
            self.states[version] = State(Phase.LOADING)
            self._shares[version] = share
            return [Start(version)]
        if phase is Phase.READY and version == self.current:
            return self._stop(self.canary, f"version {version} was loaded instead")
        if phase is Phase.READY:
            if share is None:
                return self._make_current(version)
            self.share = share
        return []

    def loaded(self, now: float, version: str) -> Actions:
        """A version that was started is warm."""
        share = self._shares.pop(version, None)
        if self.phase(version) is not Phase.LOADING:
            return [Stop(version)]  # unloaded in the meantime
        self.states[version] = State(Phase.READY)
        if share is None or self.current is None:
            return self._make_current(version)
        actions = self._stop(self.canary, f"version {version} is the canary now")
        self.canary, self.share, self._owed = version, share, 0.0
        self.evidence = Evidence(self._options, now)
        return actions

    def failed(self, version: str, why: str) -> Actions:
        """A version that was started could not be."""
        self._shares.pop(version, None)
        self.states[version] = State(Phase.UNAVAILABLE, why)
        return []

    def unload(self) -> Actions:
        """Serve no version any more."""
        for state in self.states.values():
            if state.phase is Phase.LOADING:
                state.phase, state.reason = Phase.UNLOADING, "unloaded"
        return self._stop(self.canary, "unloaded") + self._stop(self.current, "unloaded")

    def stopped(self, version: str) -> Actions:
        """A version that was to stop has ended."""
        self.states[version].phase = Phase.UNAVAILABLE
        return []

    def saw(self, now: float, version: str, seen: Seen) -> Actions:
        """A request was asked of this version and of the current one."""
        if version != self.canary or self.evidence is None:
            return []  # it is over
        self.evidence.add(seen)
        worse = self.evidence.why_worse(now)
        if worse:
            return self._stop(version, f"went back: {worse}")
        return self._make_current(version) if self.evidence.is_enough(now) else []

    # Questions

    @property
    def traffic(self) -> Traffic:
        return Traffic(self.current, self.canary, self.share if self.canary is not None else 0.0)

    def phase(self, version: str) -> Phase:
        state = self.states.get(version)
        return Phase.UNAVAILABLE if state is None else state.phase

    def choose(self) -> str | None:
        """The version that takes the next request, which is counted; None: there is none."""
        if self.canary is None:
            return self.current
        self._owed += self.share
        if self._owed < 1:
            return self.current
        self._owed -= 1
        return self.canary

    def reason(self, version: str) -> str:
        """What the index says of a version beside its phase."""
        if version == self.canary and self.evidence is not None:
            return f"canary with {self.share:.3g} of requests: {self.evidence.in_words}"
        state = self.states.get(version)
        return "not loaded" if state is None else state.reason

    # Actions

    def _make_current(self, version: str) -> Actions:
        """All requests go to this version, and what ran beside it stops."""
        why = f"version {version} took its place"
        others = [each for each in (self.canary, self.current) if each not in (None, version)]
        actions: Actions = []
        for other in others:
            actions += self._stop(other, why)
        self.current, self.canary, self.evidence = version, None, None
        return actions

    def _stop(self, version: str | None, why: str) -> Actions:
        if version is None:
            return []
        if version == self.canary:
            self.canary = self.evidence = None
        if version == self.current:
            self.current = None
        self.states[version] = State(Phase.UNLOADING, why)
        return [Stop(version)]
