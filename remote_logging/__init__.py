"""Get log lines off a machine and into object storage, and lose none.

``RemoteHandler`` is a ``logging.Handler`` that writes each record to a local spool file and ships it to any store.
"""

from __future__ import annotations

from .errors import ConfigurationError, RemoteLoggingError, SpoolError, StoreError
from .handler import RemoteHandler

__all__ = ["ConfigurationError", "RemoteHandler", "RemoteLoggingError", "SpoolError", "StoreError", "__version__"]

__version__ = "0.1.0"
