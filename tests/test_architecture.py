"""The arrows between the modules run one way, and what is heavy is imported in one place."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "remote_logging"
# Each module may import those of the rows above its own, and nothing below; a row's modules do not import each other.
ROWS = [
    {"errors", "report"},
    {"location", "leadership", "state", "stats"},
    {"spool", "store", "embedded"},
    {"store_s3", "appender", "cursor"},
    {"shipper"},
    {"recovery"},
    {"worker"},
    {"engine"},
    {"registry"},
    {"handler"},
    {"__init__", "demo"},
    {"cli"},
]
LAZY = {("store", "store_s3"), ("cli", "__init__")}  # open_store() imports the store that is asked for; the version


def imports(module: str) -> set[str]:
    """The modules of the package, and the packages beside it, that ``module`` imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            found |= {node.module} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
    return {"__init__" if name == "__version__" else name for name in found}


MODULES = {path.stem for path in PACKAGE.glob("*.py")}


def test_every_module_has_its_row() -> None:
    assert set().union(*ROWS) == MODULES


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_what_lies_above_it(module: str) -> None:
    rank = {name: number for number, row in enumerate(ROWS) for name in row}
    below = {name for name in imports(module) & MODULES if rank[name] >= rank[module]}
    assert {name for name in below if (module, name) not in LAZY} == set()


@pytest.mark.parametrize(
    ("library", "owners"),
    [
        ("fsspec", {"store", "store_s3"}),
        ("asyncio", {"store_s3"}),
        ("moto", {"embedded"}),
        ("lightning", set()),
        ("torch", set()),
    ],
)
def test_a_heavy_library_is_imported_in_one_place(library: str, owners: set[str]) -> None:
    assert {module for module in MODULES if library in imports(module)} == owners


def test_no_module_has_grown_past_one_responsibility() -> None:
    sizes = {path.name: len(path.read_text().splitlines()) for path in PACKAGE.glob("*.py")}
    assert {name: size for name, size in sizes.items() if size > 380} == {}
