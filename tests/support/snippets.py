"""The snippets of the documents: found, and run in this process as a reader would run them one after the other."""

import contextlib
import importlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.cli import fishexp

ROOT = Path(__file__).parents[2]

# in the line before a snippet that is not run: <!-- composed: why --> where its commands' configurations are looked at,
# <!-- not run: why --> where nothing is
_SNIPPET = re.compile(r"(?:^<!-- (composed|not run): [^\n]+ -->\n)?^```(\w+)\n(.*?)^```$", re.M | re.S)
_FILE = re.compile(r"# (\S+\.(?:py|yaml))")


@dataclass(frozen=True)
class Snippet:
    """Hold a block of a document.

    Attributes:
        document: Name of the file.
        line: Number of its first line there.
        language: What the document calls it.
        text: All of it.
        mark: ``composed`` or ``not run``, if its document says so.
    """

    document: str
    line: int
    language: str
    text: str
    mark: str

    @property
    def file(self) -> str | None:
        """Name the file that it is, by the comment in its first line; None if it is none."""
        found = _FILE.fullmatch(self.text.partition("\n")[0])
        return found[1] if found else None

    @property
    def commands(self) -> list[str]:
        """Return the commands of a shell's snippet, each in a line and without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [" ".join(command) for line in lines if (command := line.partition("  #")[0].split())]


def snippets(document: Path) -> list[Snippet]:
    """Find all snippets of a document."""
    text = document.read_text(encoding="utf-8")
    return [
        Snippet(document.name, text.count("\n", 0, found.start(3)) + 1, found[2], found[3], found[1] or "")
        for found in _SNIPPET.finditer(text)
    ]


def run_python(snippet: Snippet, known: dict[str, Any]) -> dict[str, Any]:
    """Run a snippet with the names in ``known``, and return them with those that it defines."""
    known.setdefault("__name__", "__main__")
    exec(compile("\n" * (snippet.line - 1) + snippet.text, snippet.document, "exec"), known)
    return known


def compose(command: str) -> None:
    """Look at the configurations of the runs that a command would begin, and begin none."""
    words = shlex.split(command)
    if words[:3] == ["python", "-m", "fishexp"]:
        result = fishexp(*words[3:], "--cfg", "job")
        assert result.status == 0, f"{command}: {result.err}"


def run_command(command: str) -> str:
    """Run a command where the process is, and return what it printed; what is ours runs in this process."""
    words = [word for typed in shlex.split(command) for word in _globbed(typed) or [typed]]
    if words[:3] == ["python", "-m", "fishexp"]:
        result = fishexp(*words[3:])
        assert result.status == 0, f"{command}: {result.err}"
        return result.out
    if words[:2] == ["python", "-m"]:
        return _run_module(words[2], words[3:])
    return subprocess.run(["bash", "-ec", command], check=True, capture_output=True, text=True).stdout


def _globbed(word: str) -> list[str]:
    """Return the paths that a shell puts in the place of a word, if any."""
    return [str(path) for path in sorted(Path().glob(word))] if "*" in word else []


def _run_module(name: str, arguments: list[str]) -> str:
    module = importlib.import_module(name)
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{name}.__main__")
    if name.startswith("fishexp.report"):
        arguments = ["--uncommitted", *arguments]  # records of whoever is at work on the code
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = module.main(arguments)
    assert status == 0, f"python -m {name} {shlex.join(arguments)}: {out.getvalue()}"
    return out.getvalue()


def run_all(found: list[Snippet], folder: Path, changed: Mapping[str, str]) -> dict[str, Any]:
    """Run the snippets of a document in ``folder``, where the process is, and return the names that they defined.

    Args:
        found: In their order; those with a mark are left out or composed, languages that nobody runs are left out.
        folder: Where the snippets that are files are written.
        changed: What stands in their place -> what runs instead, to save time.
    """
    known: dict[str, Any] = {}
    with _modules_of(folder):
        for snippet in found:
            if snippet.mark == "composed":
                for command in snippet.commands:
                    compose(command)
            if snippet.mark:
                continue
            if snippet.file:
                (folder / snippet.file).parent.mkdir(parents=True, exist_ok=True)
                (folder / snippet.file).write_text(snippet.text)
            elif snippet.language == "python":
                run_python(snippet, known)
            elif snippet.language == "bash":
                for command in snippet.commands:
                    for shown, instead in changed.items():
                        command = command.replace(shown, instead)
                    run_command(command)
    return known


@contextlib.contextmanager
def _modules_of(folder: Path) -> Iterator[None]:
    """Let modules be imported from ``folder``, as they are by a process that begins there; forget them afterwards."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name, module in list(sys.modules.items()):
            if (getattr(module, "__file__", None) or "").startswith(str(folder)):
                del sys.modules[name]
