"""Notes in a results store: what operators set for the whole cluster."""

from taskq.results.base import ResultStore

pytest_plugins = ("results_fixtures",)


def test_notes_are_kept_by_kind_until_they_are_removed(store: ResultStore) -> None:
    """What an operator set must be there for the next worker, and for nobody else."""
    assert store.notes("pauses") == {}

    assert not store.put_note("pauses", "queue:é", b"\x00one")
    assert not store.put_note("pauses", "task:b", b"two")
    assert not store.put_note("others", "queue:é", b"three")
    assert store.put_note("pauses", "queue:é", b"four")

    assert store.notes("pauses") == {"queue:é": b"four", "task:b": b"two"}
    assert store.put_note("pauses", "queue:é", None)
    assert not store.put_note("pauses", "queue:é", None)
    assert store.notes("pauses") == {"task:b": b"two"}
    assert store.notes("others") == {"queue:é": b"three"}
