"""The app: a registry of tasks, a broker, a results store, and the one way to send."""

import logging
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, Unpack, overload

from taskq.batch import Batch, parts, raise_first, send_parts
from taskq.brokers import broker_options, open_broker
from taskq.brokers.base import Broker, Outgoing, Publishing
from taskq.calls import Prepared, prepare
from taskq.cancelling import CancelMethods
from taskq.canvas import Chain, Signature
from taskq.config import Settings, app_settings, nearest
from taskq.declare import Declare, DeclareBound, register
from taskq.errors import ConfigError, PublishError
from taskq.events.bus import ProcessRecorder
from taskq.events.client import SentReport, Shortened
from taskq.flow.sending import Claims, stamp
from taskq.hooks import Hooks
from taskq.messaging import Messaging
from taskq.middleware import Middleware, compose_send
from taskq.pauses import Pauses
from taskq.pending import PendingMarks
from taskq.queues import Queue, Queues
from taskq.result import AsyncResult
from taskq.results import open_results
from taskq.results.base import ResultStore
from taskq.routes import Routes, Rule, Target, routes_of_file
from taskq.schedules.book import ScheduleBook
from taskq.shared import make_current, shared_tasks
from taskq.spec import TaskOptions
from taskq.task import AsyncTask, BaseTask, Task, make_task
from taskq.topics import Binding

if TYPE_CHECKING:
    from taskq.brokers.spool import Spool
    from taskq.events.stream import Events
    from taskq.flow.store import FlowStore

log = logging.getLogger("taskq.app")

P = ParamSpec("P")
R = TypeVar("R")


_batch: ContextVar[Batch | None] = ContextVar("taskq_batch", default=None)


class TaskQ(CancelMethods, Hooks, Messaging):
    """An app: declares tasks, sends them, and gives their results.

    Connections open on first use, so making one costs nothing.

    Attributes:
        name: Name of the app, shown in logs and events.
        settings: See `taskq.config.Settings`.
        middlewares: Wrapped around every send and run, the first outermost.
        schedules: The scheduled jobs; see `taskq.schedules.book.ScheduleBook`.
        routes: Which queue tasks go to that name none.
        queues: The declared queues.
    """

    def __init__(
        self,
        name: str = "taskq",
        *,
        broker: str | None = None,
        results: str | None = None,
        middlewares: Sequence[Middleware] = (),
        routes: Iterable[Rule] | Mapping[str, Target] = (),
        queues: Sequence[Queue] = (),
        **settings: Any,
    ) -> None:
        """Make an app.

        Args:
            name: Name of the app.
            broker: `amqp://`, `amqps://`, `sqlite:///path` or `memory://` URL; the embedded file
                `taskq.db` when neither this nor TASKQ_BROKER is given.
            results: `redis://`, `rediss://`, `sqlite:///path` or `memory://` URL; `off` for none.
            middlewares: See `taskq.middleware.Middleware`.
            routes: Rules that say which queue a task goes to; see `taskq.routes`.
            queues: Those that differ from the usual; see `taskq.Queue`.
            **settings: Any other of `taskq.config.Settings`.

        Raises:
            ConfigError: For an unknown setting or an unusable value.
        """
        super().__init__()
        if not isinstance(name, str) or not name:
            raise ConfigError(f"the app's name is {name!r}; use a text")
        self.name = name
        self.settings: Settings = app_settings({"broker": broker, "results": results, **settings})
        self.middlewares: list[Middleware] = list(middlewares)
        self.routes = Routes(routes, before=routes_of_file())
        self.queues = Queues(queues)
        self._tasks: dict[str, BaseTask[Any, Any]] = {}
        self._lock = threading.RLock()
        self._broker: Broker | None = None
        self._spool: Spool | None = None
        self._results: ResultStore | None = None
        self._flow: tuple[ResultStore, FlowStore] | None = None
        self._claims = Claims(self._find)
        self._marks = PendingMarks()
        self._recorder = ProcessRecorder(name)
        self._sent = SentReport(self._recorder, self.settings)
        self.schedules = ScheduleBook(self)
        self._bindings: dict[str, Binding] = {}
        self._subscribed: Broker | None = None
        make_current(self)

    def __repr__(self) -> str:
        return f"<TaskQ {self.name}>"

    @property
    def tasks(self) -> Mapping[str, BaseTask[Any, Any]]:
        """All tasks by name: the app's own, and those of the module-level `@task`."""
        return {**shared_tasks, **self._tasks}

    @property
    def get_timeout_s(self) -> float:
        """How long `get` waits when no timeout is given, in seconds."""
        return self.settings.get_timeout_s

    @property
    def broker(self) -> Broker:
        """The broker; opened on first use."""
        with self._lock:
            if self._broker is None:
                settings = self.settings
                options = broker_options(self.name, settings, self.queues.shapes)
                self._broker = open_broker(settings.broker or "", options)
            return self._broker

    @property
    def results(self) -> ResultStore | None:
        """The results store, or None when results are off; opened on first use."""
        with self._lock:
            if self._results is None and self.settings.results is not None:
                self._results = open_results(self.settings.results, self.settings.results_timeout_s)
            return self._results

    @property
    def events(self) -> "Events":
        """The lifecycle events of every task on the app's broker."""
        from taskq.events.stream import Events

        silent = self.settings.events == "off"
        return Events(lambda: self.broker, self._recorder, silent)

    def flow(self) -> "FlowStore":
        """Return the store of limits, claims and circuit breakers; opened on first use.

        Raises:
            ConfigError: If results are off, where they live.
        """
        from taskq.flow.stores import open_flow

        results = self.results
        if results is None:
            raise ConfigError("limits live in the results store: set `results=` or TASKQ_RESULTS")
        with self._lock:
            if self._flow is None or self._flow[0] is not results:
                self._flow = (results, open_flow(results))
            return self._flow[1]

    @property
    def pauses(self) -> Pauses:
        """Pauses queues and tasks for all workers."""
        return Pauses(lambda: self.results, lambda: self.broker, self.events.announce)

    @overload
    def task(  # type: ignore[overload-overlap]
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...

    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...

    @overload
    def task(self, /, *, bind: Literal[True], **options: Unpack[TaskOptions]) -> DeclareBound: ...

    @overload
    def task(
        self, /, *, bind: Literal[False] = False, **options: Unpack[TaskOptions]
    ) -> Declare: ...

    def task(self, function: Any = None, /, **options: Any) -> Any:
        """Declare a task: `@app.task` or `@app.task(queue="mail", ...)`.

        Args:
            function: The function, when used without parentheses.
            **options: See `taskq.spec.TaskSpec`.

        Raises:
            ConfigError: For an unknown option, an unusable value, or a name that is taken.
        """

        def declare(decorated: Callable[..., Any]) -> BaseTask[Any, Any]:
            return register(self._tasks, make_task(decorated, options, lambda: self))

        return declare if function is None else declare(function)

    def send(self, calls: Sequence[Signature[Any] | Chain]) -> list[AsyncResult[Any]]:
        """Send calls and wait for the broker's confirms, which are pipelined.

        Returns:
            Their handles, in order; of a chain the last step's.

        Raises:
            PublishError: If at least one was not confirmed; `failed_ids` names all such.
        """
        prepared = self._prepare(calls)
        kept, there = self._claims.take(prepared, self.flow)
        batch = _batch.get()
        if batch is not None and batch.owner is self:
            batch.add(kept)
        else:
            raise_first(send_parts(kept, self._begin))
        return self._handles(prepared, there)

    async def asend(self, calls: Sequence[Signature[Any] | Chain]) -> list[AsyncResult[Any]]:
        """Do what `send` does without blocking the loop."""
        import asyncio

        prepared = self._prepare(calls)
        kept, there = await asyncio.to_thread(self._claims.take, prepared, self.flow)
        errors: list[PublishError | None] = []
        for part in parts(kept):
            publishing = await asyncio.to_thread(self._begin, part)
            errors += await publishing.wait_async()
        raise_first(errors)
        return self._handles(prepared, there)

    def send_task(
        self,
        name: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> AsyncResult[Any]:
        """Send a task by its name; it need not be known here.

        Args:
            name: Registered name.
            args: Positional arguments.
            kwargs: Keyword arguments.
            **options: See `Task.apply_async`.
        """
        return self.send([Signature(name, tuple(args), dict(kwargs or {}), options)])[0]

    def send_many(self, calls: Iterable[Signature[Any] | Chain]) -> list[AsyncResult[Any]]:
        """Send many calls with pipelined confirms; see `send`. A generator works too."""
        return self.send(list(calls))

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Pipeline the confirms of every send in this block; failures are raised at its end.

        When the block itself raises, what was sent before is still confirmed.
        """
        batch = Batch(self, self._begin)
        token = _batch.set(batch)
        try:
            yield
        finally:
            _batch.reset(token)
            batch.finish()

    def result(self, task_id: str) -> AsyncResult[Any]:
        """Return the handle of any task id."""
        return AsyncResult(task_id, self)

    def close(self) -> None:
        """Close connections and threads; they open again when used again."""
        with self._lock:
            broker, self._broker = self._broker, None
            spool, self._spool = self._spool, None
            results, self._results = self._results, None
        self.schedules.close()
        if spool is not None:
            spool.close()
        if broker is not None:
            broker.close()
        if results is not None:
            results.close()

    def __enter__(self) -> "TaskQ":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _prepare(self, calls: Sequence[Signature[Any] | Chain]) -> list[Prepared]:
        prepared = []
        for call in calls:
            first = call.steps[0] if isinstance(call, Chain) else call
            known = self._find(first.task)
            if known is not None:
                known.check_arguments(first.args, first.kwargs)
            item = stamp(
                prepare(call, self._defaults, self.settings, self.routes, self.queues),
                known,
                first.args,
                first.kwargs,
                first.options.get("idempotency_key"),
                self.settings.results is not None,
            )
            prepared.append(self._through_middleware(item) if self.middlewares else item)
        return prepared

    def _find(self, name: str) -> BaseTask[Any, Any] | None:
        return self._tasks.get(name) or shared_tasks.get(name)

    def _defaults(self, name: str) -> Mapping[str, Any]:
        task = self._find(name)
        return {} if task is None else task.defaults

    def _through_middleware(self, item: Prepared) -> Prepared:
        outgoing = compose_send(self.middlewares, lambda last: last)(item.outgoing)
        if not isinstance(outgoing, Outgoing):
            raise ConfigError(
                f"a middleware's send returned {outgoing!r:.60}; return what call_next returns"
            )
        return Prepared(outgoing, item.ids, item.delay_s)

    def _outbox(self) -> "Broker | Spool":
        """Return what sends: the broker, or the spool in front of it."""
        broker = self.broker
        if self.settings.spool is None:
            return broker
        with self._lock:
            if self._spool is None:
                from taskq.brokers.spool import Spool

                self._spool = Spool(self.settings.spool, broker)
            return self._spool

    def _begin(self, prepared: Sequence[Prepared]) -> Publishing:
        batch = [item.outgoing for item in prepared]
        outbox = self._outbox()
        with self._sent.order:
            reported = self._sent.added_to(batch)
            publishing = outbox.submit(reported, self.settings.publish_timeout_s)
        if len(reported) > len(batch):
            publishing = Shortened(publishing, len(batch))
        # While the broker works on its confirm, PENDING is written: it costs no latency.
        store = self.results
        if store is not None:
            # Where the store sees the queue itself, only later steps of chains need a mark.
            skipped = 1 if store.covers(self.broker.url) else 0
            self._marks.write(store, prepared, skipped, self.settings.result_ttl_s)
        return self._claims.watch(publishing, prepared, self.flow)

    def _handles(
        self, prepared: Sequence[Prepared], there: Mapping[int, str]
    ) -> list[AsyncResult[Any]]:
        return [
            AsyncResult(there[at], self) if at in there else self._handle(item)
            for at, item in enumerate(prepared)
        ]

    def _handle(self, item: Prepared) -> AsyncResult[Any]:
        handle: AsyncResult[Any] | None = None
        for task_id in item.ids:
            handle = AsyncResult(task_id, self, handle)
        if handle is None:
            raise ConfigError("a call has at least one step")
        return handle


def find_task(app: TaskQ, name: str) -> BaseTask[Any, Any]:
    """Return a task of an app by name.

    Raises:
        ConfigError: If it is not registered; the message suggests the nearest name.
    """
    found = app.tasks.get(name)
    if found is None:
        raise ConfigError(f"task {name!r} is not registered{nearest(name, app.tasks)}")
    return found
