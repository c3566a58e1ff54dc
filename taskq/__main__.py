"""`python -m taskq` is the command `taskq`."""

from taskq.cli import main

if __name__ == "__main__":
    main()
