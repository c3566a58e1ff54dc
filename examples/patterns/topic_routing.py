"""Topic routing: `*` stands for one word of a key, `#` for any number.

python examples/patterns/topic_routing.py
"""

import threading
from collections import defaultdict

from taskq import TaskQ
from taskq.testing import running_worker

app = TaskQ("weather", broker="memory://", results="memory://")
got: dict[str, list[str]] = defaultdict(list)
all_there = threading.Event()

WANTED = {
    "eu.*": ["eu.rain", "eu.sun"],
    "#.rain": ["eu.berlin.rain", "eu.rain", "us.rain"],
    "#": ["eu.berlin.rain", "eu.rain", "eu.sun", "us.rain"],
}


def note(pattern: str, key: str) -> None:
    got[pattern].append(key)
    if sum(map(len, got.values())) == sum(map(len, WANTED.values())):
        all_there.set()


@app.subscribe("eu.*", name="europe")
def europe(key: str) -> None:
    note("eu.*", key)


@app.subscribe("#.rain", name="umbrellas")
def umbrellas(key: str) -> None:
    note("#.rain", key)


@app.subscribe("#", name="archive")
def archive(key: str) -> None:
    note("#", key)


def main() -> None:
    for key in ("eu.rain", "eu.sun", "eu.berlin.rain", "us.rain"):
        app.publish(key, key)
    with running_worker(app):
        assert all_there.wait(60), dict(got)

    for pattern, keys in WANTED.items():
        print(f"{pattern:8} {' '.join(sorted(got[pattern]))}")
        assert sorted(got[pattern]) == keys


if __name__ == "__main__":
    with app:
        main()
