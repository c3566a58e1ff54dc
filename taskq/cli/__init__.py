"""The command line: one console script, one file per group of commands."""
