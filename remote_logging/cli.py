"""The command line: ``remote-logging demo``, ``status`` and ``recover``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any

from . import __version__
from .errors import ConfigurationError, RemoteLoggingError
from .recovery import directories, drain, open_spool
from .spool import Spool, default_root


def main(arguments: list[str] | None = None) -> int:
    """Run a command; its exit status: 0 all well, 1 something is left or failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="remote-logging", description="Get log lines into object storage, and lose none.")
    parser.add_argument("--version", action="version", version=f"remote-logging {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("demo", help="log to a real S3 server, be killed in mid-run, and lose nothing")
    command.add_argument("url", nargs="?", help="an object or folder/ of your own store; an embedded S3 server by default")
    command.add_argument("--records", type=int, default=20_000, help="records to log, half before the kill (%(default)s)")
    command.set_defaults(run=_demo)

    spools = argparse.ArgumentParser(add_help=False)
    spools.add_argument(
        "--spool-dir",
        default=os.environ.get("REMOTE_LOGGING_SPOOL_DIR"),
        help="folder of the spools (REMOTE_LOGGING_SPOOL_DIR, else the user's state directory)",
    )
    command = commands.add_parser("status", parents=[spools], help="show what waits on this host, and whose it is")
    command.add_argument("--json", action="store_true", help="one JSON array, for programs")
    command.set_defaults(run=_status)

    command = commands.add_parser("recover", parents=[spools], help="ship what dead processes left")
    command.add_argument(
        "--storage-options",
        type=json.loads,
        default=json.loads(os.environ.get("REMOTE_LOGGING_STORAGE_OPTIONS") or "{}"),
        metavar="JSON",
        help="credentials and the like, which no spool holds (REMOTE_LOGGING_STORAGE_OPTIONS)",
    )
    command.set_defaults(run=_recover)

    given = parser.parse_args(arguments)
    try:
        return int(given.run(given))
    except RemoteLoggingError as error:
        print(f"remote-logging: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigurationError) else 1
    except KeyboardInterrupt:
        return 130


def _demo(given: argparse.Namespace) -> int:
    from .demo import demo

    return demo(given.url, given.records)


def _status(given: argparse.Namespace) -> int:
    rows = [describe(directory) for directory in directories(given.spool_dir or default_root())]
    if given.json:
        print(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        print(row["destination"])
        print(f"  {row['pending_bytes']:,} bytes pending, last written {row['age']:.0f} s ago, {row['owner']}")
        for problem in row["problems"]:
            print(f"  {problem}")
        print(f"  {row['directory']}")
    if not rows:
        print("nothing waits on this host")
    return 0


def _recover(given: argparse.Namespace) -> int:
    from tqdm import tqdm

    left = 0
    for directory in directories(given.spool_dir or default_root()):
        row = describe(directory)
        destination, pending = row["destination"], row["pending_bytes"]
        if row["owner_alive"]:
            print(f"{destination}: {row['owner']}, which ships its {pending:,} bytes itself")
            continue
        why = None
        if row["known"]:
            # disable=None: a bar on a terminal, nothing elsewhere.
            with tqdm(total=pending, unit="B", unit_scale=True, desc=destination, disable=None, leave=False) as bar:
                why = drain(directory, given.storage_options, progress=bar.update)
        problems = ([why] if why else []) + row["problems"]
        left += bool(problems)
        print(f"{destination}: " + ("; ".join(problems) if problems else f"all is shipped ({pending:,} bytes were pending)"))
    return 1 if left else 0


def describe(directory: str) -> dict[str, Any]:
    """What ``status`` says of one spool directory. Holds no secret, as the spool holds none."""
    problems = [f"kept aside: {os.path.join(directory, name)}" for name in os.listdir(directory) if name.endswith(".damaged")]
    row: dict[str, Any] = {
        "destination": directory, "directory": directory, "pending_bytes": 0, "age": 0.0, "known": False,
        "owner": "owner unknown", "owner_alive": False, "owner_pid": None, "problems": problems,
    }  # fmt: skip
    try:
        spool = open_spool(directory)
        row.update(
            destination=spool.location.url,
            known=True,
            pending_bytes=spool.pending(spool.leadership.acknowledged()),
            age=time.time() - max((os.stat(file.path).st_mtime for file in spool.files()), default=time.time()),
        )
        row.update(_owner(spool))
    except (OSError, RemoteLoggingError) as error:
        problems.append(str(error))
    return row


def _owner(spool: Spool) -> dict[str, Any]:
    with spool.structure():
        alive = any(spool.occupied(file) for file in spool.files())
    pid = spool.leadership.pid()
    if not alive:
        return {"owner": "owner dead", "owner_alive": False, "owner_pid": pid}
    stopped = pid is not None and _is_stopped(pid)
    owner = (
        f"owner {pid} is stopped (go on with: kill -CONT {pid})" if stopped else f"owner {pid or ''} alive".replace("  ", " ")
    )
    return {"owner": owner, "owner_alive": True, "owner_pid": pid}


def _is_stopped(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
