"""What a run was asked for."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar


class Named(Protocol):
    """Anything with a name."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


@dataclass(frozen=True)
class Options:
    """The command line.

    data : folder of real data sets; is_fetched : whether missing ones are downloaded; cases, libraries : parts of the
    names to keep, all if empty; n_rounds : of interleaved calls; is_smoke : tiny cases, no pauses, one round;
    limit_seconds : of one fit or sweep.
    """

    data: Path = Path("data")
    is_fetched: bool = False
    cases: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    n_rounds: int = 5
    is_smoke: bool = False
    limit_seconds: float = 900

    def choose_cases(self, full: Iterable[T], smoke: Iterable[T]) -> list[T]:
        return _named(smoke if self.is_smoke else full, self.cases)

    def choose_libraries(self, libraries: Iterable[T]) -> list[T]:
        return _named(libraries, self.libraries)


def _named(items: Iterable[T], names: tuple[str, ...]) -> list[T]:
    return [item for item in items if not names or any(name in item.name for name in names)]
