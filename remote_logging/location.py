"""From what a user writes to one concrete destination: URL, fields, query and storage options. Pure.

A URL may hold the fields ``{host} {pid} {rank} {local_rank} {run} {time:%Y-%m-%d}``; ``{{`` and ``}}`` are braces.
Its query parameters become storage options, because fsspec itself would make them part of the object's name.
What identifies a destination is its canonical URL together with the options that say *which* store is meant: the same
key on two endpoints is two destinations. No secret is part of a canonical URL, of a digest or of ``document()``.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import string
import time
from collections.abc import Mapping
from typing import Any

from .errors import ConfigurationError

Options = dict[str, Any]

# protocol: (canonical name, extra that brings it, module that must be importable)
PROTOCOLS = {
    "s3": ("s3", "s3", "s3fs"),
    "s3a": ("s3", "s3", "s3fs"),
    "gs": ("gs", "gcs", "gcsfs"),
    "gcs": ("gs", "gcs", "gcsfs"),
    "az": ("abfs", "azure", "adlfs"),
    "abfs": ("abfs", "azure", "adlfs"),
    "abfss": ("abfs", "azure", "adlfs"),
    "hdfs": ("hdfs", "hdfs", "pyarrow"),
    "file": ("file", "", ""),
    "local": ("file", "", ""),
    "memory": ("memory", "", ""),
}
SUPPORTED = ("s3", "file", "memory")
BUCKETS = {"s3": "bucket", "gs": "bucket", "abfs": "container"}
COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".lz4", ".zip")

# What a query parameter sets, as a path into the storage options; a bool is given as true/false.
QUERY: dict[str, dict[str, tuple[type, tuple[str, ...]]]] = {
    "s3": {
        "anon": (bool, ("anon",)),
        "endpoint_url": (str, ("endpoint_url",)),
        "profile": (str, ("profile",)),
        "requester_pays": (bool, ("requester_pays",)),
        "use_ssl": (bool, ("use_ssl",)),
        "region": (str, ("client_kwargs", "region_name")),
        "region_name": (str, ("client_kwargs", "region_name")),
        "signature_version": (str, ("config_kwargs", "signature_version")),
        "addressing_style": (str, ("config_kwargs", "s3", "addressing_style")),
        "use_accelerate_endpoint": (bool, ("config_kwargs", "s3", "use_accelerate_endpoint")),
        "use_dualstack_endpoint": (bool, ("config_kwargs", "s3", "use_dualstack_endpoint")),
        "acl": (str, ("s3_additional_kwargs", "ACL")),
        "storage_class": (str, ("s3_additional_kwargs", "StorageClass")),
    },
    "gs": {"endpoint_url": (str, ("endpoint_url",)), "project": (str, ("project",))},
    "abfs": {"account_name": (str, ("account_name",)), "account_host": (str, ("account_host",))},
    "hdfs": {"user": (str, ("user",)), "replication": (int, ("replication",))},
}

# The options that may be written to disk, so that a later process finds the store again; a dict allows what it names.
PUBLIC: Options = {
    "anon": True, "endpoint_url": True, "profile": True, "requester_pays": True, "use_ssl": True, "version_aware": True,
    "cache_regions": True, "project": True, "account_name": True, "account_host": True, "host": True, "port": True,
    "user": True, "replication": True,
    "client_kwargs": {"region_name": True, "endpoint_url": True, "use_ssl": True, "verify": True},
    "config_kwargs": {"signature_version": True, "region_name": True, "s3": True},
    "s3_additional_kwargs": {"ACL": True, "StorageClass": True, "ServerSideEncryption": True, "SSEKMSKeyId": True},
}  # fmt: skip
IDENTITY: Options = {
    "endpoint_url": True, "account_name": True, "account_host": True, "host": True, "port": True,
    "client_kwargs": {"endpoint_url": True},
}  # fmt: skip
ENDPOINT_VARIABLES = {"s3": ("FSSPEC_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")}


class Location:
    """One concrete destination.

    Attributes:
        url: the canonical URL, without query and secrets.
        protocol: fsspec's name of the store, such as ``"s3"``.
        path: what fsspec calls the path: ``bucket/key``, or the absolute path of a local file.
        options: the storage options, secrets included; never written anywhere.
        template: the canonical URL with its fields still in it; the same for all runs of one program.
    """

    __slots__ = ("options", "path", "protocol", "template", "url")

    def __init__(self, protocol: str, path: str, options: Options, template: str) -> None:
        self.protocol, self.path, self.options, self.template = protocol, path, options, template
        self.url = f"{protocol}://{path}"

    def document(self) -> Options:
        """What may be written to disk about this destination: no secret is in it."""
        return {"url": self.url, "template": self.template, "options": _only(self.options, PUBLIC)}

    @classmethod
    def from_document(cls, document: Mapping[str, Any], extra: Options | None = None) -> Location:
        """The destination that ``document()`` described, with ``extra`` storage options (credentials) merged in."""
        protocol, _, path = str(document["url"]).partition("://")
        return cls(protocol, path, merge(dict(document["options"]), extra or {}), str(document["template"]))

    def identity(self) -> str:
        """The text that tells this destination from every other one of this host."""
        which: Options = {"options": _only(self.options, IDENTITY), "host": socket.gethostname()}
        if self.protocol == "memory":
            which["pid"] = os.getpid()
        return f"{self.url}\n{sorted(which.items())!r}"

    def sibling(self, label: str) -> Location:
        """The destination beside this one that is ours alone: ``run/training.log`` becomes ``run/training.<label>.log``."""
        folder, slash, name = self.path.rpartition("/")
        stem, dot, suffix = name.rpartition(".")
        name = f"{stem}.{label}.{suffix}" if dot and stem else f"{name}.{label}"
        return Location(self.protocol, f"{folder}{slash}{name}", self.options, self.template)


class Template:
    """A user's URL and storage options, checked; ``resolve`` fills in the fields.

    Raises:
        ConfigurationError: the URL or an option is wrong; the message says what to do.
    """

    def __init__(self, url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> None:
        self.given = os.fspath(url) if isinstance(url, os.PathLike) else url
        if not isinstance(self.given, str) or not self.given.strip():
            raise ConfigurationError(
                f"the url is {url!r}", hint="Give a string such as 's3://bucket/run/training.log' or a local path"
            )
        scheme, separator, rest = self.given.partition("://")
        if not separator and self.given.partition(":/")[0].lower() in PROTOCOLS and ":/" in self.given:
            raise self._error("a slash is missing behind the protocol", f"Write {self.given.replace(':/', '://', 1)}")
        if not separator:
            scheme, rest, query = "file", _local(self.given), ""
        else:
            rest, _, query = rest.partition("?")
        self.protocol = self._protocol(scheme.lower())
        if self.protocol == "file" and separator:
            rest = _local(rest)
        self.path = self._path(rest)
        self.fields = self._fields(self.path)
        self.varies_with_time = any(field == "time" for _, field, _ in self.fields)  # asked for with each record
        if storage_options is not None and not isinstance(storage_options, Mapping):
            raise self._error(f"storage_options is a {type(storage_options).__name__}", "Give a dict")
        self.options = merge(self._query(query), storage_options or {})
        self._endpoint()

    def resolve(self, now: float | None = None) -> Location:
        """The destination of this process at the time ``now`` (seconds since the epoch; the present by default)."""
        path = "".join(literal + _render(field, spec, now) for literal, field, spec in self.fields)
        return Location(self.protocol, path, self.options, f"{self.protocol}://{self.path}")

    @property
    def varies_with_process(self) -> bool:
        return any(field == "pid" for _, field, _ in self.fields)

    def _error(self, reason: str, hint: str) -> ConfigurationError:
        # The given URL may hold a password or a key; what is shown is cut before its query and after its userinfo.
        scheme, separator, rest = str(self.given).partition("://")
        if separator:
            rest = rest.partition("?")[0][len(self._userinfo(rest)) :]
        return ConfigurationError(reason, url=scheme + separator + rest, hint=hint)

    @staticmethod
    def _userinfo(rest: str) -> str:
        """Credentials before an @, also where a secret holds a slash; a user alone is none, but for buckets."""
        userinfo = rest.rpartition("@")[0]
        name, colon, _ = userinfo.partition(":")
        return userinfo + "@" if userinfo and "/" not in name and (colon or "/" not in userinfo) else ""

    def _protocol(self, scheme: str) -> str:
        if scheme == "adl":
            raise self._error(
                "adl:// is Azure Data Lake Gen1, which was retired in 2024",
                "Use abfs://container/path on a Gen2 account (pip install 'remote-logging[azure]')",
            )
        if scheme not in PROTOCOLS:
            raise self._error(
                f"unknown protocol {scheme!r}", f"Known: {', '.join(name + '://' for name in PROTOCOLS)} and local paths"
            )
        protocol = PROTOCOLS[scheme][0]
        if protocol not in SUPPORTED:
            raise self._error(f"{scheme}:// is not supported by this version", "Use s3:// or a local path")
        needed = missing_extra(protocol)
        if needed:
            raise self._error(f"{scheme}:// needs a package that is not installed", f"Install it: {needed}")
        return protocol

    def _path(self, rest: str) -> str:
        if self._userinfo(rest):
            raise self._error(
                "credentials in a url end up in logs and process lists",
                "Give them by environment variable, profile or storage_options",
            )
        noun = BUCKETS.get(self.protocol)
        if noun:
            bucket, _, key = rest.partition("/")
            if not bucket:
                raise self._error(f"the {noun} name is missing", f"Write {self.protocol}://{noun}/folder/training.log")
            if not key.strip("/"):
                raise self._error(
                    f"the object's name is missing after the {noun}", f"Write {self.protocol}://{bucket}/folder/training.log"
                )
        if not rest.strip("/") or rest.endswith("/"):
            raise self._error("the url names a folder", "Add the name of the file, such as training.log")
        if rest.endswith(COMPRESSED):
            raise self._error(
                "a compressed file cannot grow by appending", "Name it without the compression suffix, such as training.log"
            )
        return rest

    def _fields(self, path: str) -> list[tuple[str, str, str]]:
        hint = f"Known fields: {' '.join('{' + name + '}' for name in FIELDS)} and {{time:%Y-%m-%d}}; write {{{{ for a brace"
        try:
            parsed = list(string.Formatter().parse(path))
        except ValueError as error:
            raise self._error(f"a brace is not closed or not opened ({error})", hint) from None
        fields = []
        for literal, field, spec, conversion in parsed:
            if field == "offset":
                raise self._error(
                    "the segment layout ({offset}) is not in this version", "Leave the field out: one object grows instead"
                )
            if field is not None and (conversion or (field != "time" and (field not in FIELDS or spec))):
                raise self._error(f"unknown field {{{field}{'!' + conversion if conversion else ''}}}", hint)
            if field == "time" and not spec:
                raise self._error("{time} needs a format", "Write {time:%Y-%m-%d}")
            fields.append((literal, field or "", spec or ""))
        return fields

    def _query(self, query: str) -> Options:
        options: Options = {}
        if not query:
            return options
        from urllib.parse import parse_qsl  # 2 ms at first use; most URLs have no query

        known = QUERY.get(self.protocol, {})
        for name, value in parse_qsl(query, keep_blank_values=True):
            if name not in known:
                raise self._error(
                    f"{name!r} is no option of {self.protocol}:// that a url can set",
                    (f"Known: {', '.join(sorted(known))}. " if known else "") + "Everything else goes into storage_options",
                )
            kind, path = known[name]
            try:
                converted = BOOLEANS[value.lower()] if kind is bool else kind(value)
            except (KeyError, ValueError):
                raise self._error(f"{name}={value!r} is no {kind.__name__}", "Write true, false or a number") from None
            options = merge(options, _nested(path, converted))
        return options

    def _endpoint(self) -> None:
        for variable in ENDPOINT_VARIABLES.get(self.protocol, ()):
            if not _only(self.options, IDENTITY) and os.environ.get(variable):
                self.options = {**self.options, "endpoint_url": os.environ[variable]}
        s3_config = (self.options.get("config_kwargs") or {}).get("s3") or {}
        if s3_config.get("use_accelerate_endpoint") and _only(self.options, IDENTITY):
            raise self._error(
                "transfer acceleration and a custom endpoint exclude each other",
                "Leave out use_accelerate_endpoint, or the endpoint_url (option, AWS_ENDPOINT_URL)",
            )


def merge(base: Options, over: Mapping[str, Any]) -> Options:
    """``base`` with ``over`` laid on it, dicts merged key by key (fsspec would replace them whole)."""
    result = dict(base)
    for name, value in over.items():
        old = result.get(name)
        result[name] = merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return result


def missing_extra(protocol: str) -> str | None:
    """The command that installs what ``protocol`` needs; ``None`` where all is there. Imports nothing."""
    _, extra, module = PROTOCOLS.get(protocol, ("", "", ""))
    if extra and importlib.util.find_spec(module) is None:
        return f"pip install 'remote-logging[{extra}]'"
    return None


def run_name() -> str:
    """The name of this run: ``REMOTE_LOGGING_RUN``, else start time and a random part, shared with child processes."""
    if not os.environ.get("REMOTE_LOGGING_RUN"):
        # The environment is what spawned children inherit; all ranks that this process starts then share one run.
        os.environ["REMOTE_LOGGING_RUN"] = time.strftime("%Y%m%d-%H%M%S-") + os.urandom(3).hex()
    return os.environ["REMOTE_LOGGING_RUN"]


def _first(*variables: str) -> str:
    return next((os.environ[name] for name in variables if os.environ.get(name)), "0")


FIELDS = {
    "host": socket.gethostname,
    "pid": lambda: str(os.getpid()),
    "rank": lambda: _first("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"),
    "local_rank": lambda: _first("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "run": run_name,
}
BOOLEANS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def _render(field: str, spec: str, now: float | None) -> str:
    if field == "time":
        return time.strftime(spec, time.localtime(now))
    return FIELDS[field]().replace("/", "-") if field else ""


def _local(path: str) -> str:
    # abspath() takes the slash off that tells a folder
    return os.path.abspath(os.path.expanduser(path)) + ("/" if path.endswith("/") else "")


def _nested(path: tuple[str, ...], value: object) -> Options:
    for name in reversed(path):
        value = {name: value}
    return value if isinstance(value, dict) else {}


def _only(options: Mapping[str, Any], allowed: Options) -> Options:
    result: Options = {}
    for name, rule in allowed.items():
        value = options.get(name)
        if isinstance(value, str) and "://" in value:
            scheme, _, rest = value.partition("://")
            value = f"{scheme}://{rest.rpartition('@')[2]}"  # no user:password of an endpoint
        if rule is True and isinstance(value, (str, int, float, bool, dict)):
            result[name] = value
        elif isinstance(rule, dict) and isinstance(value, Mapping):
            inner = _only(value, rule)
            if inner:
                result[name] = inner
    return result
