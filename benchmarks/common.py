"""What both benchmarks need: the command line, an aligned table, and the file of results."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BUCKET = "bench"


def is_quick(description: str | None) -> bool:
    """Whether the command line asks for a short run; it has no other option."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds: shows that it works; the numbers are rough")
    return bool(parser.parse_args().quick)


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is a name, the others are numbers and go to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    print(f"\n{title}\n")
    for row in (header, ["-" * width for width in widths], *rows):
        name, *numbers = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([name.strip().ljust(widths[0]), *numbers]).rstrip(), flush=True)


def save(script: str, results: dict[str, Any]) -> None:
    """Write ``results`` as JSON beside the script, with what they were measured on."""
    machine = {"python": platform.python_version(), "system": platform.platform(), "cpus": os.cpu_count()}
    path = Path(script).with_suffix(".json")
    path.write_text(json.dumps({"machine": machine, **results}, indent=1) + "\n")
    print(f"\nsaved as {path.name}")
