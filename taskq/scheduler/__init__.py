"""The scheduler: sends what is due, once, however many of it run."""
