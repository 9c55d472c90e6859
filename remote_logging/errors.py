"""The exception tree. Every error names the URL, the operation that failed and what to do about it.

::

    RemoteLoggingError
    ├── ConfigurationError (ValueError)   a URL or an argument is wrong; raised by constructors and the command line
    ├── SpoolError (OSError)              the spool directory cannot be used; raised by constructors
    └── StoreError                        talking to the store failed; stays inside the shipper, seen in ``stats()``
        ├── Conflict                      a condition did not hold: the object must be asked again
        ├── Unreachable                   no answer: refused, timed out, cut, name not found
        ├── Refused                       the store said no, and will until somebody changes something
        └── Unavailable                   the store answered that it is busy or broken
"""

from __future__ import annotations


class RemoteLoggingError(Exception):
    """Base class of every error of this package.

    Attributes:
        reason: what went wrong, one sentence without its full stop.
        url: the destination, without secrets; empty where none is concerned.
        operation: what was being done, such as ``"append"``.
        hint: what to do about it.
    """

    def __init__(self, reason: str, *, url: str = "", operation: str = "", hint: str = "") -> None:
        self.reason, self.url, self.operation, self.hint = reason, url, operation, hint
        place = " ".join(part for part in (operation, url) if part)
        super().__init__((f"{place}: " if place else "") + reason + (f". {hint}" if hint else ""))


class ConfigurationError(RemoteLoggingError, ValueError):
    """A URL or an argument is wrong."""


class SpoolError(RemoteLoggingError, OSError):
    """The spool directory cannot be used."""


class StoreError(RemoteLoggingError):
    """Talking to the store failed. After any of these the object's length is unknown until it is asked."""


class Conflict(StoreError):
    """The object was not what a conditional request expected, or a copy of the request had landed before."""


class Unreachable(StoreError):
    """No answer came: connection refused, timed out or cut, or the name was not found."""


class Refused(StoreError):
    """The store said no (credentials, rights, a missing bucket): trying again helps only once somebody acts."""


class Unavailable(StoreError):
    """The store answered that it is overloaded or broken; trying again later helps."""
