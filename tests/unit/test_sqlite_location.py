"""URLs of embedded databases."""

import os
from pathlib import Path

import pytest

from taskq.brokers.base import BrokerOptions
from taskq.brokers.sqlite import SqliteBroker
from taskq.embedded.location import parse_location
from taskq.errors import ConfigError
from taskq.results import open_results
from taskq.results.sqlite import SqliteResults


def test_a_relative_path_counts_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Banner and errors must say which file it is; a later chdir must not change it."""
    monkeypatch.chdir(tmp_path)

    location = parse_location("sqlite:///sub/q.db")
    monkeypatch.chdir("/")

    assert location.path == f"{os.path.realpath(tmp_path)}/sub/q.db"
    assert location.url == f"sqlite:///{location.path}"
    assert parse_location(location.url) == location


def test_a_path_may_hold_any_characters(tmp_path: Path) -> None:
    """Directories have spaces and question marks; a URL writes them as %xx."""
    location = parse_location(f"sqlite:///{tmp_path}/a%20b%3Fc.db")

    assert location.path == f"{os.path.realpath(tmp_path)}/a b?c.db"


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite:///dir/",
        "sqlite://host/file.db",
        "sqlite:///q.db?mode=ro",
        "sqlite:q.db",
        "q.db",
        "memory://a/b",
    ],
)
def test_an_unusable_url_says_what_to_write_instead(url: str) -> None:
    """`sqlite://q.db` is what people write first."""
    with pytest.raises(ConfigError, match=r"use |takes none"):
        parse_location(url)


def test_two_spellings_of_one_file_are_one_database(tmp_path: Path) -> None:
    """Else PENDING marks would be written for nothing, or be missing."""
    (tmp_path / "link").symlink_to(tmp_path)
    broker = SqliteBroker(f"sqlite:///{tmp_path}/link/q.db", BrokerOptions())
    same = SqliteResults(f"sqlite:///{tmp_path}/q.db")
    other = SqliteResults(f"sqlite:///{tmp_path}/r.db")

    assert same.covers(broker.url)
    assert not other.covers(broker.url)
    assert not same.covers("amqp://localhost")
    for thing in (broker, same, other):
        thing.close()


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("redsi://localhost", "redis"),
        ("sqlit:///q.db", "sqlite"),
        ("postgres://secret@host", "known: redis://"),
        ("q.db", "known: redis://"),
    ],
)
def test_an_unknown_results_scheme_names_the_nearest(url: str, hint: str) -> None:
    """A misspelt setting must fail at once, with the cure and without the password."""
    with pytest.raises(ConfigError, match=hint) as caught:
        open_results(url)

    assert "secret" not in str(caught.value)
