"""What dead processes left: finding their spools, and shipping them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from .appender import Appender
from .errors import RemoteLoggingError
from .location import Location
from .report import Reporter, shipping
from .shipper import Shipper
from .spool import FORMAT, Spool, read_document
from .store import open_store


def directories(root: str) -> list[str]:
    """The spool directories under ``root``."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(entry.path for entry in os.scandir(root) if os.path.exists(os.path.join(entry.path, "destination.json")))
    return []


def leftovers(root: str, template: str) -> list[str]:
    """The spool directories under ``root`` that runs of the same URL template have made on this host."""
    found = []
    for directory in directories(root):
        with contextlib.suppress(OSError):
            document = read_document(directory)
            if document.get("format") == FORMAT and document.get("template") == template:
                found.append(directory)
    return found


def open_spool(directory: str, storage_options: dict[str, Any] | None = None) -> Spool:
    """The spool in ``directory``, for a destination that is described there; touches nothing.

    Raises:
        OSError: it cannot be read.
        RemoteLoggingError: it is of an unknown format.
    """
    document = read_document(directory)
    if document.get("format") != FORMAT:
        raise RemoteLoggingError(
            f"{directory} is of format {document.get('format')!r}, this version reads {FORMAT}",
            hint="It is kept as it is; ship it with the version that wrote it",
        )
    location = Location.from_document(document, storage_options)
    return Spool(directory, location, Reporter(location.url))


def drain(
    directory: str,
    storage_options: dict[str, Any] | None = None,
    *,
    progress: Callable[[int], object] = lambda _: None,
    go_on: Callable[[], bool] = lambda: True,
) -> str | None:
    """Ship a spool directory whose owners are all dead, on this thread. ``None`` when nothing is left in it, else why.

    ``progress`` is called with the number of bytes that each step has shipped; ``go_on`` is asked before each.

    Raises:
        OSError, RemoteLoggingError: the directory cannot be read.
    """
    spool = open_spool(directory, storage_options)
    with spool.structure():
        files = spool.files()
        if any(spool.occupied(file) for file in files):
            return "its owner is alive, and ships it"
    if not files:
        spool.settle_empty()
        return None
    location = spool.location
    appender = Appender(spool, max_bytes=2**62, fsync=False, report=spool.report)
    appender.join()
    shipper = Shipper(spool, appender, lambda label: open_store(location.sibling(label) if label else location), spool.report)
    token = shipping.set(True)
    left = spool.held()
    try:
        while go_on() and shipper.step(final=True):
            progress(left - (left := spool.pending(shipper.acknowledged)))
        return None if spool.leadership.held else "another process is shipping it"
    except (OSError, RemoteLoggingError) as error:
        return str(error)
    finally:
        shipping.reset(token)
        appender.leave(for_children=True)
        shipper.settle()
        shipper.close()
