"""The tasks of a small shop; broker and results come from the environment, or are a file here."""

import os
import sqlite3
from contextlib import closing
from typing import Any

from taskq import Task, TaskQ, every

app = TaskQ("shop")


def database() -> sqlite3.Connection:
    """Open the shop's own database."""
    connection = sqlite3.connect(os.environ["SHOP_DB"], timeout=60)
    with connection:
        connection.execute("CREATE TABLE IF NOT EXISTS payments (order_id INT, amount INT)")
        connection.execute("CREATE TABLE IF NOT EXISTS mails (order_id INT)")
        connection.execute("CREATE TABLE IF NOT EXISTS reports (payments INT)")
    return connection


@app.task(name="shop.charge", bind=True, idempotency_key="order")
def charge(self: Task[..., str], order: int, amount: int) -> str:
    """Take the money once, however often somebody clicks and whatever dies."""
    with closing(database()) as db, db:
        if self.once(db):
            db.execute("INSERT INTO payments VALUES (?, ?)", (order, amount))
    return f"order {order} paid"


@app.task(name="shop.confirm", bind=True, rate_limit="20/s", idempotency_key="order")
def confirm(self: Task[..., Any], paid: str, order: int) -> str:
    """Send one mail for each order; the provider takes twenty a second."""
    with closing(database()) as db, db:
        if self.once(db):
            db.execute("INSERT INTO mails VALUES (?)", (order,))
    return paid


@app.task(name="shop.export", max_concurrency=1, concurrency_key="warehouse")
def export(warehouse: str, order: int) -> str:
    """Write the order into the warehouse's file, which takes one writer at a time."""
    path = os.path.join(os.environ["SHOP_DIR"], f"{warehouse}.lock")
    with open(path, "x", encoding="utf-8"):
        pass
    os.remove(path)
    return warehouse


@app.task(name="shop.report", schedule=every(1), unique="until_done")
def report() -> int:
    """Count the payments, every second; a slow one is not overtaken by the next."""
    with closing(database()) as db, db:
        (count,) = db.execute("SELECT count(*) FROM payments").fetchone()
        db.execute("INSERT INTO reports VALUES (?)", (count,))
    return int(count)
