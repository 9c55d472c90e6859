"""What we need of a store, in four verbs, and how each store does them best. The only importer of fsspec.

``head`` asks length and token of the object, ``read`` reads a range of it, ``append`` makes it longer by exactly the
bytes given, ``put`` replaces it. The last three state what they expect to find (``Head``) and raise ``Conflict`` where the
store can check that and it does not hold. After any ``StoreError`` nobody knows the object's length: it must be asked.

Every call is bounded (I6). No thread is used but the caller's: asynchronous filesystems run on a loop that belongs to
this store and runs name lookups in place, so that a fresh connection also works while the interpreter shuts down, when
neither a thread can be started nor an executor be used, and so that a forked child shares nothing with its parent.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import fsspec

from .errors import Conflict, Refused, StoreError, Unavailable, Unreachable
from .location import Location, missing_extra


class Head:
    """What a store says of an object: its size, and a token that changes with its content (``None``: there is no object)."""

    __slots__ = ("size", "token")

    def __init__(self, size: int, token: str | None) -> None:
        self.size, self.token = size, token

    def __repr__(self) -> str:
        return f"Head({self.size}, {self.token!r})"


class Store:
    """One object of one store.

    Attributes:
        rewrites_below: an append to an object smaller than this uploads the whole object, so the spool should hold it.
        sent: bytes of request bodies given to the store so far, whatever became of them.
        until: the moment, on the monotonic clock, at which a request under way is given up; ``None``: by its own limit.
    """

    rewrites_below = 0
    until: float | None = None

    def __init__(self, location: Location) -> None:
        self.location, self.sent = location, 0

    def head(self) -> Head:
        """Length and token of the object as it is now, from the store itself."""
        raise NotImplementedError

    def read(self, start: int, end: int, head: Head) -> bytes:
        """The object's bytes from ``start`` to ``end``, of the object that ``head`` describes."""
        raise NotImplementedError

    def append(self, head: Head, data: bytes, old: Callable[[], bytes]) -> Head:
        """Make the object that ``head`` describes longer by ``data``; ``old()`` gives its present bytes, where needed."""
        raise NotImplementedError

    def put(self, head: Head, data: bytes) -> Head:
        """Replace the object that ``head`` describes by ``data``."""
        raise NotImplementedError

    def tidy(self) -> None:
        """Clear away what requests of a killed process left behind, as far as that can be done."""

    def close(self) -> None:
        """Close the connections."""


class FileStore(Store):
    """Where a file can be opened for appending: local disks and memory. Unconditional: the size is looked at once open."""

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        local = {"auto_mkdir": True} if location.protocol == "file" else {}
        self.fs = fsspec.filesystem(
            location.protocol, skip_instance_cache=True, use_listings_cache=False, **{**local, **location.options}
        )

    def head(self) -> Head:
        with library_errors(self.location, "head"):
            try:
                info = self.fs.info(self.location.path)
            except FileNotFoundError:
                return Head(0, None)
            if info["type"] == "directory":
                raise Refused("there is a directory of that name", url=self.location.url, hint="Name a file in it")
            return Head(info["size"], f"{info.get('ino', '')}.{info.get('mtime', info.get('created'))}.{info['size']}")

    def read(self, start: int, end: int, head: Head) -> bytes:
        with library_errors(self.location, "read"):
            return bytes(self.fs.cat_file(self.location.path, start=start, end=end))

    def append(self, head: Head, data: bytes, old: Callable[[], bytes]) -> Head:
        with library_errors(self.location, "append"):
            # Open first, look second: whoever wrote before the look is seen, and what we write goes to the end (I4).
            with self.fs.open(self.location.path, "ab") as file:
                if self.head().size != head.size:
                    raise Conflict("the file has another size than expected", url=self.location.url, operation="append")
                self._write(file, data)
            return self._landed(head.size + len(data))

    def put(self, head: Head, data: bytes) -> Head:
        with library_errors(self.location, "put"):
            if self.head().token != head.token:
                raise Conflict("the file is not the one to replace", url=self.location.url, operation="put")
            with self.fs.open(self.location.path, "wb") as file:
                self._write(file, data)
            return self._landed(len(data))

    def _write(self, file: Any, data: bytes) -> None:
        self.sent += len(data)
        file.write(data)
        file.flush()
        with contextlib.suppress(AttributeError, OSError):  # memory has no descriptor
            os.fsync(file.fileno())  # what is called shipped must survive a power cut, as the spool may be removed (I1, I7)

    def _landed(self, size: int) -> Head:
        head = self.head()
        if head.size != size:
            raise Conflict("somebody else wrote to the file at the same moment", url=self.location.url, operation="append")
        return head


def open_store(location: Location) -> Store:
    """The store of a destination. Local work only, beside importing the store's library.

    Raises:
        Refused: the library is not installed, or fsspec knows no such protocol.
    """
    if location.protocol == "s3":
        with library_errors(location, "connect"):
            from .store_s3 import S3Store

            return S3Store(location)
    if location.protocol in ("file", "memory"):
        return FileStore(location)
    raise Refused(
        f"{location.protocol}:// is not supported by this version",
        url=location.url,
        operation="connect",
        hint="Use s3://, a local path or memory://",
    )


# S3 error code -> (our class, what to do); https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_CLOCK = "Set this machine's clock (see: timedatectl)"
_KEYS = "Check the access key and its secret: environment, ~/.aws/credentials, storage_options"
_RIGHTS = (
    "The identity needs s3:GetObject, s3:PutObject and s3:AbortMultipartUpload on the object and s3:ListBucket on the bucket"
)
_REGION = "Name the bucket's region: ?region=... in the url, or AWS_DEFAULT_REGION"
_CODES: dict[str, tuple[type[StoreError], str]] = {
    "PreconditionFailed": (Conflict, ""),
    "ConditionalRequestConflict": (Conflict, ""),
    "OperationAborted": (Conflict, ""),
    "NoSuchUpload": (Conflict, ""),
    "NoSuchKey": (Conflict, ""),
    "InvalidRange": (Conflict, ""),
    "404": (Conflict, ""),
    "409": (Conflict, ""),
    "412": (Conflict, ""),
    "416": (Conflict, ""),
    "NoSuchBucket": (Refused, "Create the bucket (aws s3 mb s3://{bucket}), or correct its name"),
    "InvalidBucketName": (Refused, "Correct the bucket's name"),
    "AccessDenied": (Refused, _RIGHTS),
    "403": (Refused, _RIGHTS),
    "Forbidden": (Refused, _RIGHTS),
    "InvalidAccessKeyId": (Refused, _KEYS),
    "SignatureDoesNotMatch": (Refused, _KEYS),
    "InvalidToken": (Refused, _KEYS),
    "ExpiredToken": (Refused, "The session token has expired: renew it (aws sso login), or use a role"),
    "TokenRefreshRequired": (Refused, "The session token has expired: renew it (aws sso login), or use a role"),
    "RequestTimeTooSkewed": (Refused, _CLOCK),
    "PermanentRedirect": (Refused, _REGION),
    "AuthorizationHeaderMalformed": (Refused, _REGION),
    "301": (Refused, _REGION),
    "307": (Refused, _REGION),
    "SlowDown": (Unavailable, ""),
    "ServiceUnavailable": (Unavailable, ""),
    "InternalError": (Unavailable, ""),
    "500": (Unavailable, ""),
    "503": (Unavailable, ""),
}
# exception class name -> the same; by name, because the classes are of libraries that may not be installed
_CLASSES: dict[str, tuple[type[StoreError], str]] = {
    "NoCredentialsError": (
        Refused,
        "Give credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile in ~/.aws, or an IAM role of this machine",
    ),
    "PartialCredentialsError": (Refused, _KEYS),
    "ProfileNotFound": (Refused, "Name a profile that ~/.aws/config has, or leave it out"),
    "NoRegionError": (Refused, _REGION),
    "ImportError": (Refused, ""),
    "TypeError": (Refused, "Is every one of the storage_options known to the filesystem?"),
    "IsADirectoryError": (Refused, "Name a file, not a folder"),
    "NotADirectoryError": (Refused, "A folder of the path is a file"),
    "PermissionError": (Refused, "This user may not write there"),
    "SSLError": (Unreachable, "Is a proxy in between, or its certificate missing (AWS_CA_BUNDLE, SSL_CERT_FILE)?"),
    "ProxyConnectionError": (Unreachable, "Check HTTPS_PROXY and NO_PROXY"),
    "EndpointConnectionError": (Unreachable, "Is the network up, and the endpoint right (endpoint_url, region)?"),
    "HTTPClientError": (Unreachable, ""),
    "ConnectionError": (Unreachable, ""),
    "TimeoutError": (Unreachable, "Is the network up, and the endpoint right (endpoint_url, region)?"),
}


@contextlib.contextmanager
def library_errors(location: Location, operation: str) -> Iterator[None]:
    """Map what a library raises to our tree; the one place that catches everything (I5)."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        raise _mapped(error, location, operation) from error


def _mapped(error: Exception, location: Location, operation: str) -> StoreError:
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    details = response.get("Error", {}) if isinstance(response, dict) else {}
    kind, hint = _CODES.get(str(details.get("Code")), (None, ""))
    for base in type(error).__mro__ if kind is None else ():
        if base.__name__ in _CLASSES:
            kind, hint = _CLASSES[base.__name__]
            break
    if isinstance(error, FileExistsError):
        kind = Conflict
    if isinstance(error, ImportError):
        hint = f"Install the store's library: {missing_extra(location.protocol) or 'see the message'}"
    reason = str(details.get("Message") or error).strip().rstrip(".") or type(error).__name__
    code = details.get("Code") or type(error).__name__
    return (kind or StoreError)(
        f"{reason} ({code})",
        url=location.url,
        operation=operation,
        hint=hint.format(bucket=location.path.partition("/")[0]) if hint else "",
    )
