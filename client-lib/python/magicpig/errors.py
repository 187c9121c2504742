"""One exception per status code of magicpig.h. `except magicpig.Error` catches them all; `.status` is the code."""

from __future__ import annotations


class Error(Exception):
    """A call failed. `status` is the negative MPIG_E* code; the text says what, where and what to do."""

    status: int = 0

    def __init__(self, text: str = "", status: int | None = None):
        super().__init__(text or type(self).__doc__ or "")
        if status is not None:
            self.status = status


class InvalidArgument(Error):
    """invalid argument"""

    status = -1


class NotFound(Error):
    """no such context"""

    status = -2


class Exists(Error):
    """a context of this name exists"""

    status = -3


class AccessDenied(Error):
    """permission denied"""

    status = -4


class OutOfMemory(Error):
    """out of memory in this process"""

    status = -5


class PoolFull(Error):
    """the pool is full"""

    status = -6


class OverQuota(Error):
    """over quota"""

    status = -7


class Busy(Error):
    """another client holds the writer lease, or the object is in use"""

    status = -8


class ProtocolError(Error):
    """malformed message or ring entry"""

    status = -9


class VersionMismatch(Error):
    """incompatible version"""

    status = -10


class Retry(Error):
    """the daemon went away while this was in flight; try again"""

    status = -11


class NoDaemon(Error):
    """no daemon answers on the socket"""

    status = -12


class TimedOut(Error):
    """deadline passed"""

    status = -13


class Forked(Error):
    """this handle belongs to the parent process"""

    status = -14


class NotFinite(Error):
    """NaN or infinity in the input"""

    status = -15


class OutOfRange(Error):
    """token range or position outside the context"""

    status = -16


class Again(Error):
    """nothing ready, or no room in the queue"""

    status = -17


class InputOutput(Error):
    """input/output error"""

    status = -18


class Lost(Error):
    """the context did not survive the daemon's restart"""

    status = -19


class NoLease(Error):
    """this client does not hold the writer lease"""

    status = -20


class NotSupported(Error):
    """not supported by this daemon or layer"""

    status = -21


class Shutdown(Error):
    """the daemon is shutting down, or this queue was closed"""

    status = -22


class LimitReached(Error):
    """a fixed limit of the daemon is reached"""

    status = -23


class Corrupt(Error):
    """stored data failed its checks"""

    status = -24


BY_STATUS: dict[int, type[Error]] = {cls.status: cls for cls in Error.__subclasses__()}


def make(status: int, text: str) -> Error:
    """The exception of a status code; an unknown code gives a plain Error."""
    return BY_STATUS.get(status, Error)(text, status)
