"""The pages of the repository: the commands that they show, the flags, files and places that they name.

A block of code on a page says what it is: bash (commands, all of which are checked), python, or text (output). A
command that stands in a sentence is one whose text begins with a program of `IN_SENTENCES`.
"""

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from tests.commands import ROOT

PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("pretrained/*/*.md")], key=lambda path: str(path)
)
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(`+)(.+?)\1", re.DOTALL)
_ASSIGNMENT = re.compile(r"[A-Za-z_]+=")
_COMMENT = re.compile(r"(^|\s)#.*")
_SEPARATORS = (";", "&&", "||", "|")
IN_SENTENCES = ("python", "pytest", "pip", "sbatch", "source", "./launch/")


@dataclasses.dataclass(frozen=True)
class Command:
    """One simple command of a page.

    Attributes:
      page: its path from the root.
      words: program and arguments, without the assignments before it and the brackets of what is optional.
      in_block: whether it stands in a block, which a reader copies whole.
    """

    page: str
    words: tuple[str, ...]
    in_block: bool

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of each block of code."""
    return [(found[1], found[2]) for found in _BLOCK.finditer(page.read_text())]


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return _BLOCK.sub("\n", page.read_text())


def spans(page: Path) -> list[str]:
    """What stands between backticks in sentences and tables, on one line each."""
    paragraphs = re.split(r"\n\s*\n", prose(page))
    return [" ".join(found[2].split()) for text in paragraphs for found in _SPAN.finditer(text)]


def links(page: Path) -> list[str]:
    """The targets of the page's links that are no addresses of the net."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in found if not target.startswith(("https://", "http://"))]


def anchors(page: Path) -> set[str]:
    """The places of a page that a link can name, as GitHub makes them from headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def simple_commands(line: str) -> Iterator[tuple[str, ...]]:
    """The commands of a line of shell, without comments, assignments and brackets of what is optional."""
    lexer = shlex.shlex(_COMMENT.sub("", line), posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word in _SEPARATORS:
            while words and _ASSIGNMENT.match(words[0]):
                del words[0]
            if words:
                yield tuple(words)
            words = []
        else:
            words.append(word.removeprefix("[").removesuffix("]") if word.startswith("[") else word)


def commands(page: Path) -> list[Command]:
    """All commands of a page, in blocks and in sentences."""
    name = str(page.relative_to(ROOT))
    shell = [text for language, text in blocks(page) if language == "bash"]
    lines = [(line, True) for text in shell for line in text.replace("\\\n", " ").splitlines()]
    lines += [(span, False) for span in spans(page) if _is_command(span)]
    return [Command(name, words, in_block) for line, in_block in lines for words in simple_commands(line)]


def _is_command(span: str) -> bool:
    first = next((word for word in span.split() if not _ASSIGNMENT.match(word)), "")
    return first.startswith("./launch/") or (first in IN_SENTENCES and " " in span)
