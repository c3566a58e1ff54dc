"""Publish and subscribe, and calls that wait for an answer: what an app offers besides tasks."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskq import codecs, outcome
from taskq.body import encode_call
from taskq.brokers.base import Broker, Outgoing
from taskq.brokers.shapes import check_queue_name
from taskq.errors import (
    BrokerUnavailable,
    ConfigError,
    DecodeError,
    ResultTimeout,
    TaskCancelled,
    TaskExpired,
)
from taskq.ids import new_id
from taskq.outcome import error_from_wire
from taskq.result import failure
from taskq.topics import (
    KEY,
    PUBLISHED,
    QUEUE_PREFIX,
    RPC,
    TOPICS,
    Binding,
    check_key,
    check_match,
    check_pattern,
)
from taskq.triggers import KafkaMethods

if TYPE_CHECKING:
    from taskq.config import Settings
    from taskq.task import BaseTask


class Messaging(KafkaMethods):
    """What `TaskQ` inherits; it uses the app's own broker and tasks."""

    if TYPE_CHECKING:
        settings: Settings
        _bindings: dict[str, Binding]
        _subscribed: Broker | None
        task: Any

        @property
        def broker(self) -> Broker:
            """See `TaskQ`."""

        def _find(self, name: str) -> "BaseTask[Any, Any] | None": ...

        def _defaults(self, name: str) -> Mapping[str, Any]: ...

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """What the app's subscribers get."""
        return tuple(self._bindings.values())

    def subscribe(
        self,
        pattern: str = "",
        *,
        headers: Mapping[str, Any] | None = None,
        name: str = "",
        broadcast: bool = False,
        **options: Any,
    ) -> Callable[[Callable[..., Any]], Any]:
        """Declare a function that runs for each message published under a matching key.

        It is a task: workers run it with the payload as its argument, with retries and dead
        letters. What is published while no worker runs waits in its queue, from the first start
        of a worker on. `self.request.headers["taskq-key"]` is the key (with `bind=True`).

        Args:
            pattern: Such as `orders.*` (one word) or `orders.#` (any number).
            headers: Instead of a pattern: headers to match, such as `{"type": "pdf",
                "x-match": "any"}`; all of them must match by default.
            name: Of the subscription; the function's by default. Two of different names both
                get a message, workers with the same name share what comes.
            broadcast: Whether every worker that is alive gets each message.
            **options: See `TaskQ.task`; `queue` is not among them.

        Raises:
            ConfigError: If pattern, headers or name are not usable, or the name is taken.
        """
        if bool(pattern) == (headers is not None):
            raise ConfigError("subscribe to a pattern or to headers: give one of them")
        if "queue" in options:
            raise ConfigError("a subscription has a queue of its own; leave queue= out")
        checked = check_pattern(pattern) if headers is None else ""
        match = None if headers is None else check_match(headers)

        def declare(function: Callable[..., Any]) -> Any:
            task_name = name or f"{function.__module__}.{function.__qualname__}"
            queue = check_queue_name(QUEUE_PREFIX + task_name)
            task = self.task(name=task_name, queue=queue, **options)(function)
            binding = Binding(queue, task_name, checked, match, broadcast)
            self._bindings[queue] = binding
            self._subscribed = None
            return task

        return declare

    def publish(
        self,
        key: str,
        payload: Any = None,
        *,
        headers: Mapping[str, Any] | None = None,
        to: str = "",
        record_key: str = "",
    ) -> str:
        """Publish a message to whoever subscribed, and wait for the broker's confirm.

        Nobody has to listen. Each subscriber gets it at least once.

        Args:
            key: Words with dots between them, such as `orders.created`.
            payload: Whatever a task's argument can be.
            headers: Texts, integers or booleans that subscribers can match.
            to: Instead of to subscribers: `kafka`, or `kafka:` and a topic, through the bridge. The
                broker confirms it whether Kafka is there or not; the payload is JSON.
            record_key: Key of the record in Kafka, whose order is kept; `key` by default.

        Returns:
            The id of the message.

        Raises:
            ConfigError: If the key is not usable.
            EncodeError: If payload or headers have no form on the wire.
            PublishError: If the broker did not confirm in time.
        """
        if to:
            return self._publish_away(to, key, payload, headers, record_key)
        item = self._published(check_key(key), payload, headers)
        self._make_subscriptions()
        error = self.broker.publish([item], self.settings.publish_timeout_s)[0]
        if error is not None:
            raise error
        return item.message.id

    async def apublish(
        self,
        key: str,
        payload: Any = None,
        *,
        headers: Mapping[str, Any] | None = None,
        to: str = "",
        record_key: str = "",
    ) -> str:
        """Do what `publish` does without blocking the loop; see `publish`."""
        import asyncio

        return await asyncio.to_thread(
            self.publish, key, payload, headers=headers, to=to, record_key=record_key
        )

    def rpc(
        self,
        name: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        timeout: float = 10.0,
        queue: str | None = None,
        priority: int | None = None,
    ) -> Any:
        """Call a task and wait for what it returns, without a results store.

        The answer comes straight to this process and is kept nowhere: when it comes too late, or
        this process ends, it is dropped. A call that was not started in time is not run.

        Args:
            name: Registered name; it need not be known here.
            args: Positional arguments.
            kwargs: Keyword arguments.
            timeout: Seconds to wait.
            queue: Queue, when it is not the task's own or the default one.
            priority: 0 (lowest) to 9.

        Raises:
            TypeError: If the task is known here and cannot be called so.
            ResultTimeout: If no answer came in time; the task may have run.
            TaskFailed: If it failed for good.
            TaskExpired: If it was started too late.
            BrokerUnavailable: If the broker cannot be reached, or the connection ended meanwhile.
        """
        if not timeout > 0:
            raise ConfigError(f"timeout is {timeout!r}; it must be above 0")
        item = self._called(name, args, kwargs, timeout, queue, priority)
        try:
            body = self.broker.request(item, timeout)
        except TimeoutError:
            raise ResultTimeout(item.message.id, timeout) from None
        return _answer(name, item.message.id, body)

    async def arpc(
        self,
        name: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Do what `rpc` does without blocking the loop; see `rpc`."""
        import asyncio

        return await asyncio.to_thread(self.rpc, name, args, kwargs, **options)

    def _published(self, key: str, payload: Any, headers: Mapping[str, Any] | None) -> Outgoing:
        given = dict(headers or {})
        for header in given:
            if header.startswith(("taskq-", "x-")) or header in ("task", "id"):
                raise ConfigError(f"header {header!r} is reserved; choose another name")
        given[KEY] = key
        message = encode_call(
            PUBLISHED,
            new_id(),
            (payload,),
            {},
            serializer=self.settings.serializer,
            headers=given,
        )
        return Outgoing(TOPICS, message, topic=key)

    def _make_subscriptions(self) -> None:
        """Make the queues of this app's subscribers, so that they miss nothing from now on."""
        broker = self.broker
        if self._subscribed is broker:
            return
        broker.bind(self.bindings)
        durable = [binding.queue for binding in self.bindings if not binding.broadcast]
        if durable:
            try:
                broker.declare(durable)
            except BrokerUnavailable:
                # Publishing reports it, within its own time.
                return
        self._subscribed = broker

    def _called(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None,
        timeout_s: float,
        queue: str | None,
        priority: int | None,
    ) -> Outgoing:
        from taskq.calls import prepare
        from taskq.canvas import Signature

        known = self._find(name)
        if known is not None:
            known.check_arguments(tuple(args), dict(kwargs or {}))
        options = {"queue": queue, "priority": priority, "expires": timeout_s}
        call: Signature[Any] = Signature(name, tuple(args), dict(kwargs or {}), options)
        prepared = prepare(call, self._defaults, self.settings)
        message = prepared.outgoing.message
        marked = message._replace(headers={**message.headers, "ignore_result": True, RPC: 1})
        return Outgoing(prepared.outgoing.queue, marked)


def pack_answer(state: str, value: bytes | None, error: Any) -> bytes:
    """Return the body of an answer: state, encoded value, error as data."""
    return codecs.dumps([state, value, error])


def _answer(name: str, task_id: str, body: bytes) -> Any:
    try:
        state, value, error = codecs.loads(body, codecs.MSGPACK)
        if state == outcome.SUCCESS:
            return codecs.loads(value, codecs.MSGPACK)
    except (ValueError, TypeError) as problem:
        raise DecodeError(f"the answer of {name} cannot be read: {problem}") from problem
    if state == outcome.CANCELLED:
        raise TaskCancelled(f"task {task_id} was cancelled")
    if state == outcome.EXPIRED:
        raise TaskExpired(f"task {task_id} expired before it started")
    raise failure(task_id, error_from_wire(error))
