"""Rules about what is written: docstrings, error classes, documents."""

from __future__ import annotations

import ast
import re

from tests.tidy.sources import ROOT, committed_files, dotted, sources


MODULE_DOCSTRING_LINES_MAX = 15
"""Longer theory belongs into docs/explanation, where it is found."""

# Put together here, because this file is searched too.
FORBIDDEN = {
    "a package registry": re.compile(
        "|".join(
            [
                r"pypi\." + "org",
                r"python" + r"hosted\.org",
                r"registry\.npm" + "js",
                r"proxy\.gol" + "ang",
                r"(?:--|\b)(?:extra-)?index" + r"-url\s*[= ]\s*(?:https?|file):",
                r"find" + r"-links\s*[= ]\s*[/h]",
            ]
        )
    ),
    "a path of one machine": re.compile(
        "(?<![A-Za-z0-9_.])/(?:" + "wo" + "rk|ro" + "ot|Us" + "ers)/"
    ),
    "an unfinished note": re.compile(
        r"\b(?:" + "FIX" + r"ME|XX" + r"X|" + "TO" + r"DO(?!\(#\d+\)))\b"
    ),
}


def test_every_test_says_in_a_sentence_why_it_matters() -> None:
    """The docstring is what a failing run should tell the person who reads it."""
    silent = []
    for source in sources("tests"):
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if not node.name.startswith("test_"):
                continue
            first = (ast.get_docstring(node) or "").split("\n\n")[0].strip()
            if not first.endswith((".", "?", "!")):
                silent.append(source.place(node))

    assert silent == []


def test_module_docstrings_exist_and_are_short() -> None:
    """The rules of a file fit on a third of a screen, and every file has some."""
    wrong = []
    for source in sources("meterd"):
        lines = (ast.get_docstring(source.tree) or "").splitlines()
        if not 0 < len(lines) <= MODULE_DOCSTRING_LINES_MAX and not source.name.endswith(
            "/errors.py"
        ):
            wrong.append(f"{source.name}: {len(lines)} lines")

    assert wrong == []


def test_error_classes_are_documented() -> None:
    """Who catches an error must learn from its class when it is raised."""
    wrong = []
    for source in sources("meterd"):
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.ClassDef):
                continue
            bases = {dotted(base).rpartition(".")[2] for base in node.bases}
            if not any(base.endswith(("Error", "Exception")) for base in bases):
                continue
            if not ast.get_docstring(node):
                wrong.append(source.place(node))

    assert wrong == []


def test_the_tree_in_errors_lists_every_error() -> None:
    """The docstring of meterd/errors.py is the reference; it must not lag behind the classes."""
    (errors,) = (source for source in sources("meterd") if source.name == "meterd/errors.py")
    classes = [n.name for n in errors.tree.body if isinstance(n, ast.ClassDef) and n.bases]
    tree = re.findall(r"[A-Z]\w+Error\b", (ast.get_docstring(errors.tree) or "").split("\n\n")[1])

    assert sorted(tree) == sorted(name for name in classes)


def test_committed_text_names_no_registry_no_machine_and_no_unfinished_work() -> None:
    """The repository describes the product; where and how it was made is nobody's business."""
    found = []
    for path in committed_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        for number, line in enumerate(text.splitlines(), start=1):
            for what, pattern in FORBIDDEN.items():
                if pattern.search(line):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {what}")

    assert found == []


def test_the_locks_pin_every_package_by_hash() -> None:
    """An unpinned line lets somebody else decide what runs in production."""
    for name in ("requirements.lock", "requirements-dev.lock"):
        entries = re.split(r"\n(?=\S)", (ROOT / name).read_text(encoding="utf-8").strip())
        unpinned = [e.split()[0] for e in entries if "==" not in e or "--hash=sha256:" not in e]

        assert unpinned == [], name


def test_the_development_lock_contains_the_other_one() -> None:
    """Tests must run on what users run."""

    def pins(name: str) -> set[str]:
        text = (ROOT / name).read_text(encoding="utf-8")
        return {line.split()[0] for line in text.splitlines() if line[:1].isalnum()}

    assert pins("requirements.lock") <= pins("requirements-dev.lock")
