"""Parts of a job that several processes compute at the same time."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cegate_geo.domain.windows import Window
from cegate_geo.errors import InputError


@dataclass(frozen=True, slots=True)
class Part:
    """The `number`-th of `count` parts of a job, from 1."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise InputError(
                f"There is no part {self} of a job.", hint="Give I/N with I from 1 to N: 1/4, 2/4, 3/4 and 4/4."
            )

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read 'I/N'.

        Raises:
            InputError: If it is none.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
        if match is None:
            raise InputError(f"{text!r} is no part of a job.", hint="Write it as I/N, for example 2/4.")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, windows: tuple[Window, ...]) -> tuple[Window, ...]:
        """This part of all shards: neighbours, so that few tiles are computed for two parts."""
        first, last = ((n * len(windows)) // self.count for n in (self.number - 1, self.number))
        return windows[first:last]

    @property
    def journal(self) -> str:
        """Name of its journal."""
        return f"journal-{self.number}-of-{self.count}.jsonl"
