"""The project's own files, parsed once, and the questions the tidy tests ask of them."""

from __future__ import annotations

import ast
import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path

import attrs


ROOT = Path(__file__).resolve().parents[2]


@attrs.frozen(kw_only=True)
class Source:
    """A Python file of the project."""

    name: str
    """Relative to the checkout, with forward slashes: meterd/core/quota.py."""
    text: str
    tree: ast.Module

    def place(self, node: ast.AST) -> str:
        """Return file:line, which terminals and editors open."""
        return f"{self.name}:{getattr(node, 'lineno', 1)}"

    def is_in(self, *places: str) -> bool:
        """Tell whether this is one of the files, or lies in one of the folders (ending in /)."""
        return any(
            self.name.startswith(place) if place.endswith("/") else self.name == place
            for place in places
        )


@functools.cache
def sources(folder: str) -> tuple[Source, ...]:
    """Return every Python file under a folder of the checkout, in order of name."""
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT).as_posix()
        found.append(Source(name=name, text=text, tree=ast.parse(text, filename=name)))
    assert found, f"no Python files in {folder}"
    return tuple(found)


def committed_files() -> tuple[Path, ...]:
    """Return the files git tracks or would add; in an unpacked archive, all but the dotted ones."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode != 0:
        found = (path for path in ROOT.rglob("*") if path.is_file())
        return tuple(
            p for p in found if not any(x.startswith(".") for x in p.relative_to(ROOT).parts)
        )
    return tuple(ROOT / name for name in listing.stdout.splitlines() if (ROOT / name).is_file())


def imported_modules(tree: ast.AST) -> Iterator[tuple[ast.stmt, str]]:
    """Yield every module imported anywhere in the tree, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, ast.unparse(node)
            yield node, node.module or ""


def dotted(node: ast.AST) -> str:
    """Return `a.b.c` for a name or attribute, `` for anything else."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name):
            return f"{dotted(value)}.{name}"
        case _:
            return ""


def called(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Yield every call with the dotted name of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, dotted(node.func)
