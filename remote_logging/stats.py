"""What ``RemoteHandler.stats()`` returns; imported when first asked for, as dataclasses take 5 ms to import."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stats:
    """A moment of one destination, as this process knows it.

    Records are those of this process; bytes of ``shipped`` and ``pending`` are those of the spool, which other processes
    of this host may share.

    Attributes:
        accepted_records: records that are in the spool or beyond (I1).
        accepted_bytes: their bytes.
        shipped_records: of them, those that the store is known to hold.
        pending_records: of them, those that it is not yet known to hold.
        pending_bytes: bytes in the spool that the store is not known to hold.
        dropped_records: records refused because the spool or the disk was full (I8).
        dropped_bytes: their bytes.
        uploaded_bytes: bytes of request bodies given to the store, repeats included.
        flushes: flushes that shipped something.
        failures: attempts that failed.
        last_success: when a flush last succeeded, in seconds since the epoch; ``None`` if none did.
        last_error: what the last failed attempt said; ``None`` if none failed.
        lag: seconds since the moment of which everything accepted before is in the store; 0.0 with nothing pending.
    """

    accepted_records: int
    accepted_bytes: int
    shipped_records: int
    pending_records: int
    pending_bytes: int
    dropped_records: int
    dropped_bytes: int
    uploaded_bytes: int
    flushes: int
    failures: int
    last_success: float | None
    last_error: str | None
    lag: float
