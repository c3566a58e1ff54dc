"""Request and reply: a call that waits for its answer, a thousand at once, and one that is late.

python examples/patterns/request_reply.py
"""

from concurrent.futures import ThreadPoolExecutor

from taskq import ResultTimeout, TaskQ
from taskq.testing import running_worker

# No results store: answers come straight to whoever asked.
app = TaskQ("pricing", broker="memory://", results="off")


@app.task(name="pricing.quote", max_retries=0)
def quote(sku: int) -> int:
    return 3 * sku


def main() -> None:
    with running_worker(app):
        print("one answer:", app.rpc("pricing.quote", (14,), timeout=60))
        with ThreadPoolExecutor(100) as threads:
            answers = list(
                threads.map(lambda sku: app.rpc("pricing.quote", (sku,), timeout=60), range(1000))
            )
        assert answers == [3 * sku for sku in range(1000)], "an answer reached the wrong caller"
        print("a thousand answers, each where it belongs")

    try:
        app.rpc("pricing.quote", (1,), timeout=0.5)
    except ResultTimeout as error:
        print("no worker:", error)
    else:
        raise AssertionError("nobody was there to answer")


if __name__ == "__main__":
    with app:
        main()
