"""An S3 server on this machine, in a process of its own, that counts what it is sent: for the demo, tests and benchmarks.

It is moto's server; ``pip install 'remote-logging[demo]'`` brings it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

from .errors import ConfigurationError

COUNTERS = "/_counters"
OPTIONS = {"key": "testkey", "secret": "testsecret", "config_kwargs": {"s3": {"addressing_style": "path"}}}


class EmbeddedS3:
    """A running server.

    Attributes:
        endpoint: its URL.
        port: its port on 127.0.0.1.
        storage_options: what a handler or fsspec needs to use it.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.endpoint = f"http://127.0.0.1:{port}"
        self.storage_options: dict[str, Any] = {**OPTIONS, "endpoint_url": self.endpoint}

    def request(self, method: str, path: str, data: bytes | None = None) -> bytes:
        """One request past any client library; the body of the reply.

        Raises:
            urllib.error.HTTPError: as the server answers.
        """
        headers = {"Authorization": "AWS4-HMAC-SHA256 Credential=testkey/20260101/us-east-1/s3/aws4_request, Signature=0"}
        headers["Content-Type"] = "application/octet-stream"  # urllib would call it a form, and moto believe it
        request = urllib.request.Request(f"{self.endpoint}{path}", data, headers, method=method)  # noqa: S310 - our own server
        with urllib.request.urlopen(request) as reply:  # noqa: S310
            body: bytes = reply.read()
            return body

    def counters(self) -> dict[str, int]:
        """Since the last ``reset``: ``requests``, bytes of bodies ``up`` and ``down``."""
        found: dict[str, int] = json.loads(self.request("GET", COUNTERS))
        return found

    def reset(self) -> None:
        self.request("DELETE", COUNTERS)

    def make_bucket(self, name: str) -> None:
        self.request("PUT", f"/{name}")

    def read(self, bucket: str, key: str) -> bytes:
        """The object's bytes; empty if there is none."""
        try:
            return self.request("GET", f"/{bucket}/{key}")
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return b""


@contextlib.contextmanager
def embedded_s3() -> Iterator[EmbeddedS3]:
    """Start a server in a process of its own; it ends with this block, and with this process.

    Raises:
        ConfigurationError: moto is not installed.
    """
    # It ends when its standard input does, so that not even SIGKILL of this process leaves it behind.
    server = subprocess.Popen(  # noqa: S603 - this module, with this interpreter
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"},
    )
    assert server.stdin is not None and server.stdout is not None  # noqa: S101 - for the type checker
    try:
        line = server.stdout.readline()
        if not line.strip().isdigit():
            raise ConfigurationError("the embedded S3 server did not start", hint="pip install 'remote-logging[demo]'")
        yield EmbeddedS3(int(line))
    finally:
        server.kill()
        server.wait()
        server.stdin.close()
        server.stdout.close()


class _Counting:
    """WSGI middleware that counts requests and the bytes of their bodies."""

    def __init__(self, application: Any) -> None:
        self.application, self.lock = application, threading.Lock()
        self.counters = {"requests": 0, "up": 0, "down": 0}

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == COUNTERS:
            if environ["REQUEST_METHOD"] == "DELETE":
                self.counters = dict.fromkeys(self.counters, 0)
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(self.counters).encode()]
        self._count(requests=1, up=int(environ.get("CONTENT_LENGTH") or 0))
        return self._counted(self.application(environ, start_response))

    def _counted(self, body: Iterable[bytes]) -> Iterator[bytes]:
        try:
            for piece in body:
                self._count(down=len(piece))
                yield piece
        finally:
            if hasattr(body, "close"):
                body.close()

    def _count(self, **amounts: int) -> None:
        with self.lock:
            for name, amount in amounts.items():
                self.counters[name] += amount


def _serve() -> None:
    import logging

    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class KeepAlive(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"  # as S3: connections stay open

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = _Counting(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=KeepAlive)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    _serve()
