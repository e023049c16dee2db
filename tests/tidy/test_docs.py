"""Documents: links lead somewhere, and the commands, settings and targets they name exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import attrs
import click

from meterd.cli import group
from meterd.config import OTHER_VARIABLES, setting_fields, variable_of
from tests.tidy.sources import ROOT, committed_files


README_WORDS_MAX = 500

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
COMMAND = re.compile(r"(?:^|[\s=])(?:\S*/)?meterd (--?[a-z-]+|[a-z]+(?:-[a-z]+)*)(.*)")
NOT_COMMANDS = {"ready"}
"""What may follow the name in a line that meterd prints."""

NOT_SETTINGS = {"METERD_URL", "METERD_KEY", "METERD_TEST_DATABASE_URL"}
"""What the client's examples and the tests read; no settings of the service."""


@attrs.frozen
class Page:
    """A Markdown file of the project."""

    path: Path
    text: str

    @property
    def name(self) -> str:
        """Return the path relative to the checkout."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def prose(self) -> str:
        """Return the text without fenced blocks."""
        return FENCE.sub("", self.text)


@cache
def pages() -> tuple[Page, ...]:
    """Return every Markdown file that is or would be committed."""
    return tuple(
        Page(path, path.read_text(encoding="utf-8"))
        for path in committed_files()
        if path.suffix == ".md"
    )


def page(name: str) -> Page:
    """Return one page."""
    (found,) = (page for page in pages() if page.name == name)
    return found


def anchors(text: str) -> set[str]:
    """Return the anchors that headings of a page have where it is shown."""
    titles = (re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", t) for t in HEADING.findall(text))
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


def test_internal_links_lead_somewhere() -> None:
    """A dead link ends somebody's reading."""
    dead = []
    for source in pages():
        for target in LINK.findall(source.prose):
            if "://" in target or target.startswith("mailto:"):
                continue
            name, _, anchor = target.partition("#")
            path = (source.path.parent / name).resolve() if name else source.path
            is_dead = not path.exists()
            if anchor and not is_dead:
                is_dead = anchor not in anchors(FENCE.sub("", path.read_text(encoding="utf-8")))
            if is_dead:
                dead.append(f"{source.name}: {target}")

    assert dead == []


def test_every_page_is_on_the_map() -> None:
    """Nobody finds a page that nothing leads to."""
    docs = ROOT / "docs"
    linked = {(docs / target).resolve() for target in LINK.findall(page("docs/README.md").text)}
    missing = [
        source.name
        for source in pages()
        if source.path.is_relative_to(docs)
        and source.path not in linked
        and not source.path.is_relative_to(docs / "news")
        and source.name != "docs/README.md"
    ]

    assert missing == []


def commands_in(source: Page) -> Iterator[tuple[str, str]]:
    """Yield each command of meterd that a page types, with the rest of its line."""
    for language, block in FENCE.findall(source.text):
        if language not in ("sh", "console", "ini"):
            continue
        for line in re.sub(r"\\\n", " ", block).splitlines():
            typed = re.sub(r"(^|\s)#.*", "", line.removeprefix("$ ")).partition("|")[0]
            yield from ((match[1], match[2]) for match in COMMAND.finditer(typed))
    for quoted in re.findall(r"`((?:\.venv/bin/)?meterd [^`]+)`", source.prose):
        yield from ((match[1], match[2]) for match in COMMAND.finditer(quoted))


def command_named(name: str) -> click.Command:
    """Return a command of the command line."""
    command = group.get_command(click.Context(group), name)
    assert command is not None, name
    return command


def test_commands_that_documents_name_exist_with_their_options() -> None:
    """What a reader types must not be answered with "no such command"."""
    known = set(group.list_commands(click.Context(group)))
    wrong = []
    for source in pages():
        for name, rest in commands_in(source):
            if name in NOT_COMMANDS or name in ("--help", "-h"):
                continue
            if name not in known:
                wrong.append(f"{source.name}: meterd {name}")
                continue
            options = {"--help", "-h"}
            command = command_named(name)
            if isinstance(command, click.Group):
                word = re.match(r"\s*([a-z][a-z-]*)", rest)
                part = command.commands.get(word[1]) if word else None
                if word and part is None:
                    wrong.append(f"{source.name}: meterd {name} {word[1]}")
                command = part or command
            for parameter in command.params:
                options.update(parameter.opts, parameter.secondary_opts)
            wrong += [
                f"{source.name}: meterd {name} {option}"
                for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", rest)
                if option not in options
            ]

    assert wrong == []


def test_settings_that_documents_name_exist() -> None:
    """An option of yesterday's release in a document costs somebody an evening."""
    names = {name for name, _, _ in setting_fields()}
    variables = {variable_of(name) for name in names} | OTHER_VARIABLES | NOT_SETTINGS
    wrong = []
    for source in pages():
        wrong += [
            f"{source.name}: {variable}"
            for variable in re.findall(r"\bMETERD_[A-Z][A-Z_]*\b(?![*…])", source.text)
            if variable not in variables
        ]
        for language, block in FENCE.findall(source.text):
            if language == "toml" and "meterd.toml" in block:
                keys = re.findall(r"^(\w+) *=", block, re.MULTILINE)
                wrong += [f"{source.name}: {key}" for key in keys if key not in names]
        linked = re.findall(r"configuration\.md#(\w+)", source.text)
        wrong += [f"{source.name}: {key}" for key in linked if key not in names]

    assert wrong == []


def test_the_readme_is_short() -> None:
    """Who has to scroll does not try it."""
    assert len(page("README.md").text.split()) <= README_WORDS_MAX


def test_the_targets_that_documents_name_are_in_the_makefile() -> None:
    """The first command of a newcomer is `make` something."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    promised = re.findall(r"^\$ make ([a-z]+)$", page("README.md").text, re.MULTILINE)
    named = {
        target
        for source in pages()
        for target in re.findall(r"(?:`|^\$ )make ([a-z]+)", source.text, re.MULTILINE)
    }

    assert promised == ["demo", "test"]
    assert named - targets == set()


def test_the_command_line_page_lists_every_command() -> None:
    """The page says what `meterd --help` says, in its words."""
    context = click.Context(group)
    text = page("docs/reference/cli.md").text
    rows = re.findall(r"^\| `meterd [a-z-]+` \| .+ \|$", text, re.MULTILINE)
    expected = [
        f"| `meterd {name}` | {command_named(name).get_short_help_str(200)} |"
        for name in group.list_commands(context)
    ]
    sections = set(re.findall(r"^## meterd ([a-z-]+)$", text, re.MULTILINE))

    assert rows == expected
    assert sections <= set(group.list_commands(context))
