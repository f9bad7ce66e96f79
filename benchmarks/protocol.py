"""The interface of a benchmark: a package in this folder that has the functions of :class:`Benchmark`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import Field, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch

from benchmarks.records import Record
from benchmarks.timing import Effort


class Case(Protocol):
    """Describe a setting: a frozen dataclass whose fields, except ``contenders``, go into the records.

    Attributes:
        benchmark: Name of the benchmark's package.
        contenders: Names of the implementations to measure, in the order of a round.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    benchmark: ClassVar[str]

    @property
    def contenders(self) -> tuple[str, ...]: ...


class Result(Protocol):
    """Hold what was measured of a contender: a dataclass whose fields go into its record.

    ``str`` of it is printed. Either the case or the result has a ``precision``.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def contender(self) -> str: ...


@dataclass(frozen=True)
class Picture:
    """Draw a benchmark's records into a PNG file named after the benchmark.

    Attributes:
        alt: Text that replaces the picture where none is shown.
        save: Function that draws records into a file; imports matplotlib, which takes long, only when it is called.
    """

    alt: str
    save: Callable[[Sequence[Record], Path], None]


AnyCase = TypeVar("AnyCase", bound=Case)


class Benchmark(Protocol[AnyCase]):
    """Define the functions that a benchmark's package has."""

    @property
    def PICTURE(self) -> Picture | None:  # noqa: N802, a constant of a module
        """Return the benchmark's picture, if it has any."""
        ...

    def cases(self, device: str) -> list[AnyCase]:
        """List all settings for a device type, "cpu" or "cuda", in the order in which they run."""
        ...

    def quick_cases(self, device: str) -> list[AnyCase]:
        """List the settings of a smoke test, which takes seconds to minutes: some of ``cases``, or smaller settings."""
        ...

    def measure(self, case: AnyCase, device: torch.device, effort: Effort) -> Iterator[Result]:
        """Check the contenders whose packages are installed, then time them; yields a result for each.

        Raises:
            FishexpError: If a contender computes something wrong.
        """
        ...

    def title(self, record: Record) -> str:
        """Describe the setting of a record, or of a case as a dictionary, except for the precision."""
        ...

    def sections(self, records: Sequence[Record]) -> list[str]:
        """Return headings and tables, as Markdown paragraphs, of the benchmark's records from a machine."""
        ...
