"""What long computations say of themselves while they run: text for people, and how large their programs will be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

from absdom.types import Clock, Program, Size

PAUSE = 5.0  # seconds between two lines of progress
GROWTH = 1.25  # a program is told of again where it needs so many times the memory of the one told last


def silent(text: str) -> None:
    """Tell nobody."""


@dataclass(eq=False)
class Report:
    """Told by whatever runs, from several threads too; `tell(text)` hears of it.

    Of what goes on (called as a function) a line every few seconds is passed on. Thousands of boxes have the same
    program at the same place: one line tells of it, before the first is built, and another one only where it grows.
    """

    tell: Callable[[str], None] = silent
    _quiet: Clock = field(default_factory=lambda: Clock(PAUSE))
    _largest: dict[tuple[str, str], Size] = field(default_factory=dict)
    _told: dict[tuple[str, str], float] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def __call__(self, text: str) -> None:
        with self._lock:
            due = self._quiet.passed()
            if due:
                self._quiet = Clock(PAUSE)
        if due:
            self.tell(text)

    def program(self, method: str, place: str, size: Size) -> None:
        """A program of this size is about to be built."""
        key = method, place
        with self._lock:
            if key not in self._largest or size.megabytes > self._largest[key].megabytes:
                self._largest[key] = size
            fresh = key not in self._told or size.megabytes > GROWTH * self._told[key]
            if fresh:
                self._told[key] = size.megabytes
        if fresh:
            self.tell(str(Program(method, place, size)))

    @property
    def programs(self) -> tuple[Program, ...]:
        """The largest program of each method at each place."""
        with self._lock:
            return tuple(Program(*key, size) for key, size in self._largest.items())
