"""Tasks that wait for others: mail, webhooks, HTTP APIs, databases. Threads.

A thread that waits costs little, so many run at once. A task that computes does not belong here:
the threads of one executor share one interpreter lock.
"""

queues = ("default",)
pool = "thread"
concurrency = 32
executors = 2
grace_s = 25
max_tasks_per_child = 10_000
