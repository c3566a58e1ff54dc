"""Dead letters: look at them, send them again, edit, drop, export and import them.

::

    dead = DeadLetters(app.broker, app.results)
    for letter in dead.list(Filter(reason="failed")):
        print(letter.id, letter.exception.type)
    dead.replay(dead.choose(Filter(task="mail.*")))

Looking never removes or spends a letter. A letter is removed only after its replay was confirmed.
"""

from taskq.dead.edit import Edit
from taskq.dead.filter import Filter, same_id
from taskq.dead.journal import Journal, Journals
from taskq.dead.letter import DeadException, DeadLetter, FailedAttempt, read_letter
from taskq.dead.letters import Chosen, DeadLetters

__all__ = [
    "Chosen",
    "DeadException",
    "DeadLetter",
    "DeadLetters",
    "Edit",
    "FailedAttempt",
    "Filter",
    "Journal",
    "Journals",
    "read_letter",
    "same_id",
]
