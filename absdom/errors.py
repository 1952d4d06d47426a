"""What absdom says when something cannot be done: what, where, why, and what to do. Exit code 2."""

from __future__ import annotations


class AbsdomError(Exception):
    """Base of every error a user can cause; its text is one clear line (or a short list)."""


class UsageError(AbsdomError):
    """An argument, option, method or device that does not exist or makes no sense."""


class BudgetError(UsageError):
    """A program whose predicted size is above what it may take; nothing was built."""


class ModelError(AbsdomError):
    """A model file or module that cannot be read, or that is not what it claims to be."""


class PropertyError(AbsdomError):
    """A property that cannot be read or does not fit the network."""


class GraphError(AbsdomError):
    """A graph that breaks a law of the IR: an error of a front end or of a pass, never of the user's data."""


class UnsupportedOp(AbsdomError):
    """Ops that no rule handles. Carries all of them at once, so that one run tells the whole story."""

    def __init__(self, message: str, ops: tuple[str, ...] = ()):
        super().__init__(message)
        self.ops = ops


class Deadline(AbsdomError):
    """Raised inside long computations when the deadline has passed; the pipeline turns it into `timeout`."""
