"""A shop on a busy minute: double clicks, a mail provider's rate, one writer per file, a report.

python examples/shop/main.py
"""

import os
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))

from tasks import app, charge, confirm, database, export  # noqa: E402

ORDERS = 12


def main() -> None:
    buying = []
    for order in range(ORDERS):
        # Two clicks: both calls end well, and the money is taken once.
        for _ in range(2):
            buying.append((charge.s(order, 10 + order) | confirm.s(order)).delay())
    exports = [export.delay(f"warehouse-{order % 2}", order) for order in range(ORDERS)]

    paid = [handle.get(timeout=90) for handle in buying]
    stored = [handle.get(timeout=90) for handle in exports]

    db = database()
    payments = db.execute("SELECT order_id, amount FROM payments ORDER BY order_id").fetchall()
    (mails,) = db.execute("SELECT count(*) FROM mails").fetchone()
    print(f"{len(paid)} clicks, {len(payments)} payments, {mails} mails, {len(stored)} exports")
    assert payments == [(order, 10 + order) for order in range(ORDERS)], payments
    assert mails == ORDERS, mails
    deadline_s = time.monotonic() + 60
    while not (reports := db.execute("SELECT max(payments) FROM reports").fetchone()[0]):
        assert time.monotonic() < deadline_s, "no report"
        time.sleep(0.2)
    print(f"the report counted {reports} payments")
    db.close()


if __name__ == "__main__":
    from _worker import worker_beside

    with tempfile.TemporaryDirectory() as directory:
        os.environ["SHOP_DIR"] = directory
        os.environ["SHOP_DB"] = str(Path(directory) / "shop.db")
        with worker_beside(str(HERE / "tasks.py"), "-c", "4", "--with-scheduler"), app:
            main()
