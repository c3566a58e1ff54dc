"""The worker: a hub that does all I/O, and executors that run user code."""
