"""The documentation is code: its blocks run, its commands parse."""

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commandline import parse_command

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("workers/*.md")],
    key=lambda path: path.relative_to(ROOT).as_posix(),
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TIMEOUT_S = 60


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(page.read_text()) if found == language]


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


with_python = pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=page_id
)


def run_python(*args: str, directory: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", *args],
        cwd=directory,
        env={"PYTHONPATH": f"{ROOT}:{directory}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@with_python
def test_the_python_blocks_of_a_page_run(page: Path, tmp_path: Path) -> None:
    """A page's blocks run one after another, as a reader types them, on the embedded default.

    Blocks that begin with `# name.py` are files; a page with such files is a quickstart, below.
    """
    texts = blocks(page, "python")
    if any(text.startswith("# ") and text.split("\n")[0].endswith(".py") for text in texts):
        for text in texts:
            compile(text, page_id(page), "exec")
        return
    (tmp_path / "page.py").write_text("\n\n".join(texts))

    run_python("page.py", directory=tmp_path)


@pytest.fixture
def quickstart(tmp_path: Path) -> Iterator[Path]:
    """The README's files, with a worker running beside them as its reader starts it."""
    for text in blocks(ROOT / "README.md", "python"):
        name = text.split("\n")[0].removeprefix("# ")
        (tmp_path / name).write_text(text)
    worker = subprocess.Popen(
        [sys.executable, "-m", "taskq", "worker", "-A", "shop:app"],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": "/usr/bin:/bin"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield tmp_path
    finally:
        worker.send_signal(signal.SIGTERM)
        try:
            _, log = worker.communicate(timeout=TIMEOUT_S)
        finally:
            worker.kill()
    assert worker.returncode == 0, log


def test_the_quickstart_of_the_readme_does_what_it_says(quickstart: Path) -> None:
    """It is the first thing that anybody tries."""
    printed = run_python("send.py", directory=quickstart)

    assert printed == "5\n"


def test_the_quickstart_page_shows_the_files_of_the_readme() -> None:
    """Two quickstarts drift apart, and only one of them is run."""
    assert blocks(ROOT / "docs" / "quickstart.md", "python") == blocks(ROOT / "README.md", "python")


def commands(page: Path) -> list[list[str]]:
    """Return the words after `taskq` of each shell line that starts with it."""
    lines = [line for text in blocks(page, "sh") for line in text.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("taskq ")]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=page_id)
def test_the_commands_of_a_page_parse(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A renamed option must not live on in the documentation."""
    monkeypatch.chdir(ROOT)

    for words in commands(page):
        context = parse_command(words)

        assert context.info_name in words


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_relative_links_lead_somewhere(page: Path) -> None:
    """A renamed page leaves its links behind."""
    targets = re.findall(r"\]\(([^)#\s]+)\)", page.read_text())

    for target in targets:
        assert "://" in target or (page.parent / target).exists(), target


def test_every_page_is_in_a_table_of_contents() -> None:
    """A page outside of it is found by nobody."""
    index = (ROOT / "docs" / "index.md").read_text()

    for page in ROOT.glob("docs/**/*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix("").as_posix()
        assert name == "index" or "_build" in name or f"\n{name}\n" in index, name


def test_the_guarantees_name_tests_that_exist() -> None:
    """A promise whose test was renamed away looks as good as one that is kept."""
    text = (ROOT / "docs" / "guarantees.md").read_text()
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", text)

    assert named
    for file, name in named:
        (path,) = ROOT.glob(f"tests/**/{file}")
        assert f"def {name}(" in path.read_text(), f"{file}::{name}"
