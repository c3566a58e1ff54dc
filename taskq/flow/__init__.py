"""Flow control: limits, uniqueness, idempotency, circuit breakers; shared by all workers.

`spec` says what may be declared, `keys` which cell a call belongs to, `rules` and `returns` what is
decided (pure), `store` what every store promises; `stores/` holds the same rules on Redis and in
the embedded file.
"""
