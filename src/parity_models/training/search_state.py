"""What a search has done so far, in a folder, so that it can be gone on with."""

import os
from pathlib import Path

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from parity_models.codes import CodeSpec
from parity_models.errors import TrainingError
from parity_models.training.candidates import Candidate

STATE = "search.json"


class Proposed(msgspec.Struct, frozen=True):
    """A candidate as it was proposed."""

    network: str
    code: CodeSpec | None
    share: float


class Done(msgspec.Struct, frozen=True):
    """A candidate at the end of a rung: how good it was, and how long it was trained until then."""

    score: float
    covered: float
    seconds: float
    epochs: int


class Searched(msgspec.Struct, frozen=True):
    """The candidates, what determines the search, and by candidate what it was after each rung."""

    options: dict[str, str | int | float | bool]
    proposed: tuple[Proposed, ...]
    deployed_ms: float
    done: dict[str, tuple[Done, ...]] = {}

    @property
    def candidates(self) -> list[Candidate]:
        return [Candidate(each.network, each.code, each.share) for each in self.proposed]


class SearchFolder:
    """The folder of one search. Raises TrainingError where it cannot be written or read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, searched: Searched) -> None:
        """Start anew: what another search left is removed."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"cannot make the folder {self.path}: {error.strerror}") from error
        self.clear()
        self.write(searched)

    def clear(self) -> None:
        """Remove what is needed only to go on."""
        for pattern in ("*.safetensors", "*.checkpoint", "*.new", STATE):
            for file in self.path.glob(pattern):
                file.unlink(missing_ok=True)

    def read(self, options: dict[str, str | int | float | bool]) -> Searched:
        """What was done of a search with these `options`."""
        try:
            content = (self.path / STATE).read_bytes()
            searched = msgspec.json.decode(content, type=Searched)
        except FileNotFoundError as error:
            raise TrainingError(
                f"there is nothing to resume in {self.path}; run without --resume"
            ) from error
        except (OSError, ValueError) as error:
            raise TrainingError(
                f"{self.path / STATE} is damaged ({error}); run without --resume"
            ) from error
        changed = [name for name, was in searched.options.items() if options.get(name) != was]
        if changed:
            flags = " and another ".join(f"--{name}" for name in changed)
            raise TrainingError(
                f"the search in {self.path} was begun with another {flags}; resume it with the "
                "same, or begin anew without --resume"
            )
        return searched

    def write(self, searched: Searched) -> None:
        """Keep what was done."""
        beside = self.path / f"{STATE}.new"
        try:
            beside.write_bytes(msgspec.json.encode(searched))
            os.replace(beside, self.path / STATE)
        except OSError as error:
            raise TrainingError(f"cannot write {self.path}: {error.strerror}") from error

    def checkpoint(self, candidate: Candidate, rung: int) -> Path:
        """Where a training that goes on is kept."""
        return self.path / f"{candidate.slug}.{rung}.checkpoint"

    def save(self, candidate: Candidate, weights: dict[str, Tensor]) -> None:
        """Keep a candidate's weights."""
        beside = self.path / f"{candidate.slug}.new"
        try:
            # Not by save_file: what that leaves where it is killed has a name of chance.
            beside.write_bytes(save({name: each.contiguous() for name, each in weights.items()}))
            os.replace(beside, self._weights(candidate))
        except OSError as error:
            raise TrainingError(f"cannot write {self.path}: {error.strerror}") from error

    def load(self, candidate: Candidate) -> dict[str, Tensor]:
        """The weights that were kept."""
        try:
            weights: dict[str, Tensor] = load_file(self._weights(candidate))
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"{self._weights(candidate)} is damaged ({error}); run without --resume"
            ) from error
        return weights

    def _weights(self, candidate: Candidate) -> Path:
        return self.path / f"{candidate.slug}.safetensors"
