"""`taskq dead replay`, `edit` and `drop`."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from taskq.app import TaskQ
from taskq.brokers.shapes import check_queue_name
from taskq.cli.dead_options import (
    all_option,
    choose,
    choosing,
    filter_of,
    journals_of,
    letters_of,
    no_letter,
)
from taskq.cli.errors import EX_FAILURE, EX_OK, Failure
from taskq.cli.framework import Command, confirm, json_option, opened_app, yes_option
from taskq.cli.output import progress, say, write_json
from taskq.cli.values import JSON_LIST, JSON_MAP
from taskq.dead import Chosen, DeadLetter, DeadLetters, Edit, Filter, Journal
from taskq.errors import ConfigError, EncodeError

_NEWEST = "newest"


def _forget_index(app: TaskQ) -> None:
    from taskq.dead.snapshot import Snapshot

    Snapshot(app.broker, app.settings.state_dir).forget()


@click.command(
    cls=Command,
    examples="""
    taskq dead replay 1f0c8c0e
    taskq dead replay --task mail.send --since 1d --dry-run
    taskq dead replay --all --rate 100 --yes
    taskq dead replay --resume                       go on with one that was cut off
    """,
)
@choosing
@click.option("--to", default="", metavar="QUEUE", help="Send them to this queue instead.")
@click.option("--create", is_flag=True, help="Create queues that are gone.")
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    metavar="N",
    help="At most N letters a second.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be sent where.")
@click.option(
    "--resume",
    is_flag=False,
    flag_value=_NEWEST,
    metavar="[JOB]",
    help="Go on with a replay that was cut off, by its own choice of letters.",
)
@all_option
@yes_option
@json_option
def replay(
    to: str,
    create: bool,
    rate: float | None,
    dry_run: bool,
    resume: str | None,
    everything: bool,
    yes: bool,
    as_json: bool,
    **which: Any,
) -> int:
    """Send dead letters to their queues again, with the attempts at 0.

    A letter is removed once the broker has its message. The recorded failure is forgotten, so that
    `taskq result` shows the new run. A replay that is interrupted, or killed, can be gone on with:
    each letter is sent exactly once.
    """
    if to:
        check_queue_name(to)
    wanted = filter_of(which)
    with opened_app() as app:
        letters = letters_of(app)
        if resume is not None:
            if wanted != Filter() or everything or to:
                raise click.UsageError("--resume goes on with its own letters; leave filters out")
            return _resume(app, letters, "" if resume == _NEWEST else resume, as_json)
        chosen = choose(letters, "replay", everything, wanted)
        if dry_run:
            return _dry_run(letters, chosen, to, create, as_json)
        if not create:
            _check_queues(letters, chosen, to)
        if chosen.ids:
            confirm(f"Replay {len(chosen.ids)} dead letters?", yes or bool(wanted.ids))
        sent = []
        if chosen.ids:
            with _saying_how_to_go_on(), progress("dead letters sent:", len(chosen.ids)) as count:
                sent = list(
                    letters.replay(
                        chosen, to, rate_per_s=rate or 0.0, create=create, progress=count
                    )
                )
            _forget_index(app)
    kept = [] if to else chosen.homeless
    if as_json:
        write_json({"chosen": len(chosen.ids), "replayed": sent, "kept": kept})
    else:
        say(f"replayed {len(sent)} of {len(chosen.ids)} dead letters")
    if kept:
        raise Failure(
            f"kept {', '.join(kept[:5])}{' and more' if kept[5:] else ''}: nobody knows their "
            "queue; say where with --to"
        )
    return EX_OK if len(sent) >= len(chosen.ids) else EX_FAILURE


@contextmanager
def _saying_how_to_go_on() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        click.echo("interrupted; go on with: taskq dead replay --resume", err=True)
        raise


def _check_queues(letters: DeadLetters, chosen: Chosen, to: str) -> None:
    try:
        letters.check_queues(chosen, to)
    except ConfigError as error:
        raise Failure(str(error)) from error


def _dry_run(letters: DeadLetters, chosen: Chosen, to: str, create: bool, as_json: bool) -> int:
    if not create:
        _check_queues(letters, chosen, to)
    queues = Counter({to: len(chosen.ids)}) if to else chosen.queues
    homeless = queues.pop("", 0)
    if as_json:
        write_json({"chosen": len(chosen.ids), "would_replay": chosen.ids, "queues": queues})
        return EX_OK
    for name, number in sorted(queues.items()):
        say(f"would send {number:,} dead letters to {name}")
    if homeless:
        say(f"would keep {homeless:,}: nobody knows their queue; say where with --to")
    return EX_OK


def _resume(app: TaskQ, letters: DeadLetters, job: str, as_json: bool) -> int:
    journal = _journal(app, job)
    total = 0 if journal is None else len(journal.keys)
    with _saying_how_to_go_on(), progress("dead letters sent:", total) as count:
        sent = letters.resume(journal, count)
    _forget_index(app)
    before = 0 if journal is None or journal.ended is None else journal.ended["ended"] - len(sent)
    if as_json:
        write_json(
            {
                "job": None if journal is None else journal.job,
                "chosen": total,
                "replayed": list(sent),
                "before": before,
                "kept": [],
            }
        )
    else:
        say(f"replayed {len(sent)} more of {total} dead letters" if total else f"{len(sent)} sent")
    return EX_OK


def _journal(app: TaskQ, job: str) -> Journal | None:
    journals = journals_of(app)
    cut_off = journals.unfinished(app.broker.url, app.broker.options.prefix)
    if job:
        found = journals.load(job)
        if found.job not in [one.job for one in cut_off]:
            raise Failure(f"job {job} is no replay on this broker that was cut off")
        cut_off = [found]
    waiting = [journal for journal in cut_off if not journal.running]
    if cut_off and not waiting:
        raise Failure(f"the replay {cut_off[0].job} is under way; wait until it has ended")
    if len(waiting) > 1:
        names = ", ".join(journal.job for journal in waiting)
        raise Failure(f"several replays were cut off; say which: {names}")
    return waiting[0] if waiting else None


@click.command(
    cls=Command,
    examples="""
    taskq dead edit 1f0c8c0e --args '["ann@example.org"]'
    taskq dead edit -A shop:app 1f0c8c0e --kwargs '{"amount": 5}' --replay
    taskq dead edit 1f0c8c0e --queue bulk
    """,
)
@click.argument("letter_id", metavar="ID")
@click.option("--args", type=JSON_LIST, metavar="JSON", help="All positional arguments.")
@click.option("--kwargs", type=JSON_MAP, metavar="JSON", help="All keyword arguments.")
@click.option("--queue", default="", metavar="NAME", help="Queue that a replay sends it to.")
@click.option("--replay", "send", is_flag=True, help="Send it at once.")
@click.option("--create", is_flag=True, help="With --replay: create the queue if it is gone.")
@json_option
def edit(
    letter_id: str,
    args: list[Any] | None,
    kwargs: dict[str, Any] | None,
    queue: str,
    send: bool,
    create: bool,
    as_json: bool,
) -> int:
    """Change the arguments or the queue of a dead letter.

    With an app (-A) that declares the task, the arguments must fit it.
    """
    change = Edit(args, kwargs, queue)
    if change == Edit():
        raise click.UsageError("what is to be changed? Give --args, --kwargs or --queue.")
    with opened_app() as app:
        letters = letters_of(app)
        letter = _only(letters, letter_id)
        try:
            change.apply(letter, app.tasks)
        except (TypeError, EncodeError) as error:
            raise click.UsageError(
                f"the arguments do not fit {letter.task}: {error}; nothing was changed"
            ) from error
        if send:
            target = queue or letter.queue
            chosen = Chosen({letter.key}, [letter.id], queues=Counter({target: 1}))
            done = bool(letters.replay(chosen, target, create=create, edit=change))
        else:
            done = letters.edit(letter, change, app.tasks)
        _forget_index(app)
    if not done:
        raise no_letter(letter_id)
    if as_json:
        write_json({"id": letter.id, "edited": True, "replayed": send})
    else:
        say(f"edited {'and replayed ' if send else ''}{letter.id}")
    return EX_OK


def _only(letters: DeadLetters, letter_id: str) -> DeadLetter:
    with progress("dead letters read:") as count:
        found = letters.list(Filter(ids=(letter_id,)), 0, count)
    if not found:
        raise no_letter(letter_id)
    if len(found) > 1:
        raise Failure(f"{len(found)} dead letters end with {letter_id!r}; nothing was changed")
    return found[0]


@click.command(
    cls=Command,
    examples="""
    taskq dead drop 1f0c8c0e
    taskq dead drop --reason malformed --before 7d --yes
    taskq dead drop --all
    """,
)
@choosing
@all_option
@yes_option
@json_option
def drop(everything: bool, yes: bool, as_json: bool, **which: Any) -> int:
    """Delete dead letters for good."""
    wanted = filter_of(which)
    with opened_app() as app:
        letters = letters_of(app)
        chosen = choose(letters, "drop", everything, wanted)
        if chosen.ids:
            confirm(f"Delete {len(chosen.ids)} dead letters for good?", yes or bool(wanted.ids))
        with progress("dead letters dropped or passed:") as count:
            gone = letters.drop(chosen, count) if chosen.ids else []
        _forget_index(app)
    if as_json:
        write_json({"chosen": len(chosen.ids), "dropped": gone})
    else:
        say(f"dropped {len(gone)} of {len(chosen.ids)} dead letters")
    return EX_OK if len(gone) >= len(chosen.ids) else EX_FAILURE
