"""Headers routing: by what a message is, not by its key; all headers must match, or any.

python examples/patterns/headers_routing.py
"""

import threading

from taskq import TaskQ
from taskq.testing import running_worker

app = TaskQ("documents", broker="memory://", results="memory://")
got: list[str] = []
all_there = threading.Event()


def note(line: str) -> None:
    got.append(line)
    if len(got) == 4:
        all_there.set()


@app.subscribe(headers={"type": "pdf", "signed": True}, name="notary")
def notary(name: str) -> None:
    note(f"notary: {name}")


@app.subscribe(headers={"type": "pdf", "signed": True, "x-match": "any"}, name="archive")
def archive(name: str) -> None:
    note(f"archive: {name}")


def main() -> None:
    app.publish("documents", "contract", headers={"type": "pdf", "signed": True})
    app.publish("documents", "flyer", headers={"type": "pdf", "signed": False})
    app.publish("documents", "fax", headers={"type": "tiff", "signed": True})
    app.publish("documents", "memo", headers={"type": "txt"})
    with running_worker(app):
        assert all_there.wait(60), got

    for line in sorted(got):
        print(line)
    assert sorted(got) == [
        "archive: contract",
        "archive: fax",
        "archive: flyer",
        "notary: contract",
    ]


if __name__ == "__main__":
    with app:
        main()
