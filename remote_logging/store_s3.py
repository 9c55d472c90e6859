"""S3 and what speaks its protocol."""

from __future__ import annotations

import asyncio
import contextlib
import mimetypes
import time
from collections.abc import Callable, Coroutine
from typing import Any

import fsspec

from .errors import Refused
from .location import Location
from .store import Head, Store, library_errors

MiB = 2**20
CALL_TIMEOUT = 30.0  # seconds for one request, and for each MiB of its body MIB_TIMEOUT more
MIB_TIMEOUT = 15.0
CLOSE_TIMEOUT = 2.0
S3_MIN_PART = 5 * MiB  # https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
S3_MAX_COPY = 5 * 1024 * MiB


class S3Store(Store):
    """S3 and what speaks its protocol; every write is conditional on the ETag.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
    """

    rewrites_below = S3_MIN_PART

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        self.bucket, _, self.key = location.path.partition("/")
        self._loop = _InPlaceLoop()
        self._fs: Any = None
        try:
            self._run(self._connect, 0)
        except BaseException:
            self.close()
            raise

    async def _connect(self) -> None:
        options = dict(self.location.options)
        config = {"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 0}}
        config.update(options.pop("config_kwargs", None) or {})
        self._fs = fsspec.get_filesystem_class("s3")(
            asynchronous=True,
            loop=self._loop,
            skip_instance_cache=True,
            use_listings_cache=False,
            config_kwargs=config,
            **options,
        )
        self._fs.retries = 1  # the shipper repeats, after asking what has landed; a blind repeat could land twice
        await self._fs.set_session()

    def head(self) -> Head:
        with library_errors(self.location, "head"):
            try:
                reply = self._call("head_object")
            except FileNotFoundError:
                self._look_for_bucket()
                return Head(0, None)
            return Head(int(reply["ContentLength"]), str(reply["ETag"]))

    def _look_for_bucket(self) -> None:
        """The answer to HEAD is the same for a missing bucket, behind which the object may be whole."""
        try:
            self._call("head_bucket", Key=None)
        except FileNotFoundError as error:
            hint = f"Create the bucket (aws s3 mb s3://{self.bucket}), or correct its name"
            raise Refused("the bucket does not exist", url=self.location.url, operation="head", hint=hint) from error
        except PermissionError:
            pass  # only s3:ListBucket tells; then it is the object that is missing, as far as we may know

    def read(self, start: int, end: int, head: Head) -> bytes:
        if start >= end:
            return b""

        async def get() -> bytes:
            reply = await self._fs._call_s3(
                "get_object", Bucket=self.bucket, Key=self.key, Range=f"bytes={start}-{end - 1}", IfMatch=head.token
            )
            async with reply["Body"] as body:  # read to its end and closed, or the connection is lost
                return bytes(await body.read())

        with library_errors(self.location, "read"):
            return bytes(self._run(get, end - start))

    def append(self, head: Head, data: bytes, old: Callable[[], bytes]) -> Head:
        if head.size < S3_MIN_PART:
            return self.put(head, old() + data if head.size else data)
        with library_errors(self.location, "append"):
            upload = self._call("create_multipart_upload", **self._attributes())["UploadId"]
            try:
                parts: list[dict[str, Any]] = []
                pieces = -(-head.size // S3_MAX_COPY)
                step = -(-head.size // pieces)
                for start in range(0, head.size, step):
                    end = min(start + step, head.size)
                    reply = self._call(
                        "upload_part_copy",
                        UploadId=upload,
                        PartNumber=len(parts) + 1,
                        CopySource={"Bucket": self.bucket, "Key": self.key},
                        CopySourceIfMatch=head.token,
                        CopySourceRange=f"bytes={start}-{end - 1}",
                        timeout=10 * CALL_TIMEOUT,  # the store copies up to 5 GiB
                    )
                    parts.append({"PartNumber": len(parts) + 1, "ETag": reply["CopyPartResult"]["ETag"]})
                reply = self._call("upload_part", UploadId=upload, PartNumber=len(parts) + 1, Body=data)
                parts.append({"PartNumber": len(parts) + 1, "ETag": reply["ETag"]})
                reply = self._call(
                    "complete_multipart_upload", UploadId=upload, MultipartUpload={"Parts": parts}, IfMatch=head.token
                )
            except BaseException:
                with contextlib.suppress(Exception):
                    self._call("abort_multipart_upload", UploadId=upload)
                raise
            return Head(head.size + len(data), str(reply["ETag"]))

    def put(self, head: Head, data: bytes) -> Head:
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if head.token is None else {"IfMatch": head.token}
        with library_errors(self.location, "put"):
            reply = self._call("put_object", Body=data, **condition, **self._attributes())
            return Head(len(data), str(reply["ETag"]))

    def tidy(self) -> None:
        # Parts of an upload that nobody completes are billed for ever; only a kill leaves them, and it leaves a spool too.
        with contextlib.suppress(Exception):
            uploads = self._call("list_multipart_uploads", Prefix=self.key, Key=None).get("Uploads", [])
            for upload in uploads:
                if upload["Key"] == self.key:
                    self._call("abort_multipart_upload", UploadId=upload["UploadId"])

    def close(self) -> None:
        async def disconnect() -> None:
            creator = getattr(self._fs, "_s3creator", None)
            if creator is not None:
                await creator.__aexit__(None, None, None)

        self.until = None
        with contextlib.suppress(Exception):
            self._run(disconnect, 0, CLOSE_TIMEOUT)
        self._loop.close()

    def _attributes(self) -> dict[str, Any]:
        given = self._fs.s3_additional_kwargs
        return {} if "ContentType" in given else {"ContentType": content_type(self.key)}

    def _call(self, method: str, *, timeout: float = CALL_TIMEOUT, **arguments: Any) -> Any:
        arguments = {"Bucket": self.bucket, "Key": self.key, **arguments}
        body = arguments.get("Body", b"")
        self.sent += len(body)
        given = {name: value for name, value in arguments.items() if value is not None}
        return self._run(lambda: self._fs._call_s3(method, **given), len(body), timeout)

    def _run(self, function: Callable[[], Coroutine[Any, Any, Any]], size: int, timeout: float = CALL_TIMEOUT) -> Any:
        async def bounded() -> Any:
            # The loop stood still since the last call: let it notice first which pooled connections the server has closed.
            for _ in range(3):
                await asyncio.sleep(0)
            limit = timeout + size / MiB * MIB_TIMEOUT
            if self.until is not None:
                limit = max(0.0, min(limit, self.until - time.monotonic()))
            async with asyncio.timeout(limit):
                return await function()

        return self._loop.run_until_complete(bounded())


class _InPlaceLoop(asyncio.SelectorEventLoop):
    """A loop that runs what it would give to its executor (name lookups, reading credentials) in place.

    At interpreter exit an executor refuses work ("cannot schedule new futures after interpreter shutdown").
    """

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future: asyncio.Future[Any] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - handed to whoever awaits it
            future.set_exception(error)
        return future


def content_type(key: str) -> str:
    """What the object should be served as; a log is text, so that a browser shows it."""
    guessed = "text/plain" if key.endswith((".log", ".txt")) else mimetypes.guess_type(key)[0] or "application/octet-stream"
    return f"{guessed}; charset=utf-8" if guessed.startswith("text/") else guessed
