"""The dead letters of one broker: what can be asked of them and done to them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from taskq.brokers.base import Broker, Delivery, Outgoing, Verdict
from taskq.dead import replay as replaying
from taskq.dead.edit import Edit, Known
from taskq.dead.filter import Filter
from taskq.dead.journal import Journal, Journals, Key
from taskq.dead.letter import DeadLetter, read_letter
from taskq.dead.replay import Progress, Replayer
from taskq.errors import ConfigError
from taskq.results.base import ResultStore

_ALL: Final = Filter()


@dataclass(slots=True)
class Chosen:
    """Letters chosen for a replay or a drop; letters that arrive later are not among them.

    Attributes:
        keys: `DeadLetter.key` of each.
        ids: Their ids, oldest letter first.
        homeless: Ids of those whose queue nobody knows.
        queues: How many came from each queue.
        wanted: The filter that chose them.
    """

    keys: set[Key] = field(default_factory=set)
    ids: list[str] = field(default_factory=list)
    homeless: list[str] = field(default_factory=list)
    queues: Counter[str] = field(default_factory=Counter)
    wanted: Filter = _ALL


class DeadLetters:
    """The dead letters of one broker."""

    def __init__(
        self,
        broker: Broker,
        results: ResultStore | None = None,
        journals: Journals | None = None,
    ) -> None:
        """Prepare; connects on first use.

        Args:
            broker: Where they are.
            results: Where the tasks' failures are recorded, or None when results are off.
            journals: Where it is written down what is done to letters. Without, a replay that is
                killed can be gone on with only as far as its messages had left the dead letters.
        """
        self._broker = broker
        self._results = results
        self._journals = journals

    def walk(self, visit: Callable[[DeadLetter], Verdict], progress: Progress | None = None) -> int:
        """Show each letter to `visit`, oldest first, and do what it decides.

        Args:
            visit: See `taskq.brokers.base.Broker.sweep_dead`.
            progress: Called with the number of letters looked at.

        Returns:
            How many were shown.

        Raises:
            BrokerUnavailable: If the broker cannot be reached.
        """
        prefix = self._broker.options.prefix
        seen = 0

        def look(delivery: Delivery) -> Verdict:
            nonlocal seen
            seen += 1
            if progress is not None:
                progress(seen)
            return visit(read_letter(delivery, prefix))

        return self._broker.sweep_dead(look)

    def list(
        self, wanted: Filter = _ALL, limit: int = 0, progress: Progress | None = None
    ) -> Sequence[DeadLetter]:
        """Return letters, oldest first.

        Args:
            wanted: Which.
            limit: Only so many, the newest ones; 0 for all.
            progress: Called with the number of letters looked at.

        Raises:
            BrokerUnavailable: If the broker cannot be reached.
        """
        found: list[DeadLetter] = []

        def decide(letter: DeadLetter) -> Verdict:
            if wanted.matches(letter):
                found.append(letter)
                if limit and len(found) > limit:
                    del found[0]
            return "keep"

        self.walk(decide, progress)
        return found

    def choose(self, wanted: Filter = _ALL, progress: Progress | None = None) -> Chosen:
        """Choose letters to replay or to drop; see `list`."""
        chosen = Chosen(wanted=wanted)

        def decide(letter: DeadLetter) -> Verdict:
            if wanted.matches(letter):
                chosen.keys.add(letter.key)
                chosen.ids.append(letter.id)
                chosen.queues[letter.queue] += 1
                if not letter.queue:
                    chosen.homeless.append(letter.id)
            return "keep"

        self.walk(decide, progress)
        return chosen

    def check_queues(self, chosen: Chosen, to: str = "") -> None:
        """Refuse a replay to queues that do not exist.

        Args:
            chosen: Which letters.
            to: Queue to send them to instead of their own.

        Raises:
            ConfigError: If one is missing; the message says how many letters would go there.
            BrokerUnavailable: If the broker cannot be reached.
        """
        wanted = Counter({to: len(chosen.ids)}) if to else Counter(chosen.queues)
        del wanted[""]
        depths = self._broker.depths(sorted(wanted))
        gone = [name for name in sorted(wanted) if depths[name] is None]
        if gone:
            counts = ", ".join(f"{name} ({wanted[name]:,} letters)" for name in gone)
            raise ConfigError(
                f"there is no queue {counts} on the broker; nothing was sent. Send them "
                "elsewhere (--to), or have the queue made again (--create)"
            )

    def replay(
        self,
        chosen: Chosen,
        to: str = "",
        *,
        rate_per_s: float = 0.0,
        create: bool = False,
        edit: Edit | None = None,
        progress: Progress | None = None,
    ) -> Sequence[str]:
        """Send letters to their queues again, attempts at 0, and remove them.

        Their recorded FAILURE is forgotten first, with that of the chain steps behind them, or a
        worker would take the replay for the redelivery of a finished task. Letters whose queue
        nobody knows are kept unless `to` is given.

        Args:
            chosen: Which; see `choose`.
            to: Queue to send them to instead of their own.
            rate_per_s: How many a second; 0 for as fast as it goes.
            create: Whether queues that do not exist any more are created.
            edit: What is changed in each of them.
            progress: Called with the number of letters sent.

        Returns:
            The ids of the letters that were sent.

        Raises:
            BrokerUnavailable: If the broker cannot be reached.
            ConfigError: If a queue is missing, another replay is under way or was killed, or the
                journal cannot be written; nothing was sent.
            PublishError: If one was not confirmed; it and the rest are kept.
            ResultsUnavailable: If the failures cannot be forgotten; that part is kept.
        """
        if not create:
            self.check_queues(chosen, to)
        journal = self._begin(
            "replay",
            chosen,
            resumable=True,
            filter=chosen.wanted.to_json(),
            to=to,
            rate_per_s=rate_per_s,
            create=create,
            queues=[to] if to else sorted(name for name in chosen.queues if name),
            edit=None if edit is None else edit.to_json(),
        )
        plan = replaying.Plan(chosen.keys, to, rate_per_s, create, edit)
        return self._replayer(journal, progress).run(plan, sorted(filter(None, chosen.queues)))

    def resume(
        self, journal: Journal | None = None, progress: Progress | None = None
    ) -> Sequence[str]:
        """Go on with a replay that was killed.

        Args:
            journal: Its journal. Without, only what had left the dead letters is sent.
            progress: Called with the number of letters sent.

        Returns:
            The ids of the letters that were sent, without those that were sent before the kill.

        Raises:
            BrokerUnavailable: If the broker cannot be reached.
            ConfigError: If a queue is missing, or another replay is under way.
            PublishError: If one was not confirmed; it and the rest are kept.
        """
        head = {} if journal is None else journal.head
        plan = replaying.Plan(
            set() if journal is None else journal.keys,
            str(head.get("to", "")),
            float(head.get("rate_per_s", 0.0)),
            bool(head.get("create", False)),
            Edit.from_json(head.get("edit")),
            resumed=True,
        )
        queues = [str(name) for name in head.get("queues", ())]
        return self._replayer(journal, progress).run(plan, queues)

    def edit(
        self, letter: DeadLetter, change: Edit, tasks: Mapping[str, Known] | None = None
    ) -> bool:
        """Put a changed letter in the place of a letter; it becomes the newest.

        Args:
            letter: The letter.
            change: What is changed.
            tasks: What the app declares; arguments are held against the task's signature.

        Returns:
            Whether the letter was still there.

        Raises:
            ConfigError: If the letter cannot be changed so, or the journal cannot be written.
            TypeError: If the task could not be called with these arguments.
            EncodeError: If an argument has no form on the wire.
        """
        changed = change.apply(letter, tasks)
        chosen = Chosen({letter.key}, [letter.id])
        journal = self._begin("edit", chosen, queue=change.queue, edited=change.names())
        done = False

        def decide(other: DeadLetter) -> Verdict:
            nonlocal done
            if done or other.key != letter.key:
                return "keep"
            done = True
            return Outgoing(change.queue or letter.queue, changed, dead=True)

        self.walk(decide)
        if journal is not None:
            journal.note(ended=int(done))
        return done

    def drop(self, chosen: Chosen, progress: Progress | None = None) -> Sequence[str]:
        """Delete letters.

        Args:
            chosen: Which; see `choose`.
            progress: Called with the number of letters looked at.

        Returns:
            The ids of the letters that were deleted.
        """
        journal = self._begin("drop", chosen, filter=chosen.wanted.to_json())
        gone: list[str] = []

        def decide(letter: DeadLetter) -> Verdict:
            if letter.key not in chosen.keys:
                return "keep"
            gone.append(letter.id)
            return "remove"

        self.walk(decide, progress)
        if journal is not None:
            journal.note(ended=len(gone))
        return gone

    def bury(self, letters: Sequence[DeadLetter]) -> Sequence[str]:
        """Add letters that were exported; those that are there already are left out.

        Args:
            letters: From `taskq.dead.files.read_letters`.

        Returns:
            The ids of the letters that were added.

        Raises:
            BrokerUnavailable: If the broker cannot be reached.
            PublishError: If one was not confirmed; it and those behind it are not there.
        """
        known: set[Key] = set()

        def look(letter: DeadLetter) -> Verdict:
            known.add(letter.key)
            return "keep"

        self.walk(look)
        fresh = [letter for letter in letters if letter.key not in known]
        chosen = Chosen({one.key for one in fresh}, [one.id for one in fresh])
        journal = self._begin("import", chosen)
        for start in range(0, len(fresh), replaying.AT_ONCE):
            part = fresh[start : start + replaying.AT_ONCE]
            batch = [Outgoing(one.queue, one.message, dead=True) for one in part]
            for error in self._broker.publish(batch, self._broker.options.publish_timeout_s):
                if error is not None:
                    raise error
        if journal is not None:
            journal.note(ended=len(fresh))
        return chosen.ids

    def _replayer(self, journal: Journal | None, progress: Progress | None) -> Replayer:
        return Replayer(self._broker, self._results, journal, progress)

    def _begin(self, action: str, chosen: Chosen, **head: Any) -> Journal | None:
        if self._journals is None or not chosen.keys:
            return None
        broker = self._broker
        place = {"broker": broker.url, "prefix": broker.options.prefix, "chosen": len(chosen.ids)}
        return self._journals.begin(action, chosen.keys, **place, **head)
