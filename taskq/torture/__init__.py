"""Faults on purpose: load on a broker, workers and connections that fail, and an exact account.

`taskq torture` is made of this, and so are the project's own fault tests. It lives below a prefix
of its own on the broker, and removes what it made.
"""
