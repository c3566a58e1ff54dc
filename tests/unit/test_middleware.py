"""Middleware: one interface around plain functions and coroutines, in either form."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import pytest

from taskq import Middleware, Request
from taskq.brokers.base import Outgoing
from taskq.message import Message
from taskq.middleware import compose_arun, compose_run, compose_send

Log = list[str]
REQUEST = Request(id="id", task="t")


class Sync(Middleware):
    """Wraps runs as a plain method."""

    def __init__(self, name: str, log: Log) -> None:
        self.name, self.log = name, log

    def run(self, call_next: Callable[[Request], Any], request: Request) -> Any:
        self.log.append(f"{self.name} in")
        try:
            return (call_next(request), self.name)
        except ValueError as error:
            self.log.append(f"{self.name} saw {error}")
            raise
        finally:
            self.log.append(f"{self.name} out")


class Async(Middleware):
    """Wraps runs as a coroutine."""

    def __init__(self, name: str, log: Log) -> None:
        self.name, self.log = name, log

    async def arun(self, call_next: Callable[[Request], Awaitable[Any]], request: Request) -> Any:
        self.log.append(f"{self.name} in")
        await asyncio.sleep(0)
        try:
            return (await call_next(request), self.name)
        except ValueError as error:
            self.log.append(f"{self.name} saw {error}")
            raise
        finally:
            self.log.append(f"{self.name} out")


class Sends(Middleware):
    """Only wraps sends."""

    def send(self, call_next: Callable[[Outgoing], Outgoing], outgoing: Outgoing) -> Outgoing:
        return call_next(outgoing)


KINDS = pytest.mark.parametrize(
    ("first", "second"), [(Sync, Sync), (Sync, Async), (Async, Sync), (Async, Async)]
)


def run(middlewares: list[Middleware], is_async: bool, body: Callable[[Request], Any]) -> Any:
    if not is_async:
        return compose_run(middlewares, body)(REQUEST)

    async def abody(request: Request) -> Any:
        await asyncio.sleep(0)
        return body(request)

    async def main() -> Any:
        return await compose_arun(middlewares, abody)(REQUEST)

    return asyncio.run(main())


@KINDS
@pytest.mark.parametrize("is_async", [False, True])
def test_the_first_is_outermost_whatever_its_form(
    first: type[Any], second: type[Any], is_async: bool
) -> None:
    """A middleware is written once and used for both kinds of task."""
    log: Log = []

    value = run([first("a", log), second("b", log)], is_async, lambda request: request.id)

    assert value == (("id", "b"), "a")
    assert log == ["a in", "b in", "b out", "a out"]


@KINDS
@pytest.mark.parametrize("is_async", [False, True])
def test_an_exception_passes_through_all_of_them(
    first: type[Any], second: type[Any], is_async: bool
) -> None:
    """It must be the task's own exception that decides about a retry."""
    log: Log = []

    def fail(request: Request) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match=r"^no$"):
        run([first("a", log), second("b", log)], is_async, fail)

    assert log == ["a in", "b in", "b saw no", "b out", "a saw no", "a out"]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
@pytest.mark.parametrize("middlewares", [[Async], [Async, Sync, Async], [Sync]])
def test_an_exit_raised_in_a_task_arrives_and_the_next_task_runs(
    error: BaseException, middlewares: list[type[Any]]
) -> None:
    """It ends the task, whoever wraps it, and neither the executor nor the middleware's loop."""
    wrapped: list[Middleware] = [kind("m", []) for kind in middlewares]

    def leave(request: Request) -> None:
        raise error

    with pytest.raises(type(error)):
        run(wrapped, False, leave)

    assert run(wrapped, False, lambda request: "next")


def test_the_function_stays_on_its_thread_and_may_use_a_loop_of_its_own() -> None:
    """Plain tasks call `asyncio.run`, and time limits reach a task through its thread."""
    log: Log = []

    async def own_loop() -> str:
        await asyncio.sleep(0)
        return threading.current_thread().name

    value = run([Async("a", log), Async("b", log)], False, lambda request: asyncio.run(own_loop()))

    assert value == ((threading.current_thread().name, "b"), "a")


def test_what_a_middleware_sets_in_its_context_is_seen_by_the_task() -> None:
    """Tracing and tenants travel there."""
    tenant: ContextVar[str] = ContextVar("tenant", default="none")

    class Sets(Middleware):
        async def arun(
            self, call_next: Callable[[Request], Awaitable[Any]], request: Request
        ) -> Any:
            tenant.set("acme")
            return await call_next(request)

    assert run([Sets()], False, lambda request: tenant.get()) == "acme"
    assert run([Sets()], True, lambda request: tenant.get()) == "acme"
    assert tenant.get() == "none"


def test_cancelling_a_coroutine_reaches_it_through_a_blocking_middleware() -> None:
    """A time limit that ends only the wrapper would leave the work running unseen."""
    log: Log = []
    began = asyncio.Event()

    async def body(request: Request) -> None:
        began.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            log.append("cancelled")
            raise

    async def main() -> None:
        call = compose_arun([Sync("m", [])], body)
        task = asyncio.ensure_future(call(REQUEST))  # type: ignore[arg-type,var-annotated]
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while not log:
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(main(), 10))


def test_a_blocking_middleware_does_not_hold_up_the_loop() -> None:
    """One slow wrapper would stop the other hundred coroutines of the executor."""
    entered, leave = threading.Event(), threading.Event()

    class Slow(Middleware):
        def run(self, call_next: Callable[[Request], Any], request: Request) -> Any:
            entered.set()
            assert leave.wait(10)
            return call_next(request)

    async def body(request: Request) -> str:
        return "done"

    async def main() -> str:
        call = compose_arun([Slow()], body)
        task = asyncio.ensure_future(call(REQUEST))  # type: ignore[arg-type,var-annotated]
        while not entered.is_set():
            await asyncio.sleep(0.001)
        # Reached only because the loop goes on while `run` waits.
        leave.set()
        return str(await task)

    assert asyncio.run(main()) == "done"


@pytest.mark.parametrize("is_async", [False, True])
def test_a_middleware_may_replace_value_request_and_outcome(is_async: bool) -> None:
    """Which a listener may not."""

    class Other(Middleware):
        def run(self, call_next: Callable[[Request], Any], request: Request) -> Any:
            try:
                call_next(Request(id="other"))
            except KeyError as error:
                return f"instead of {error}"

    def body(request: Request) -> None:
        raise KeyError(request.id)

    assert run([Other()], is_async, body) == "instead of 'other'"


def test_what_does_not_wrap_costs_nothing() -> None:
    """A frame for every middleware, at every task, is time and a longer traceback."""

    def body(request: Request) -> None: ...

    async def abody(request: Request) -> None: ...

    def last(outgoing: Outgoing) -> Outgoing:
        return outgoing

    assert compose_run([Sends(), Middleware()], body) is body
    assert compose_arun([Sends(), Middleware()], abody) is abody
    assert compose_send([Sync("a", []), Middleware()], last) is last


def test_sends_are_wrapped_in_order() -> None:
    """The first sees the message first."""
    log: Log = []

    class Named(Middleware):
        def __init__(self, name: str) -> None:
            self.name = name

        def send(self, call_next: Callable[[Outgoing], Outgoing], outgoing: Outgoing) -> Outgoing:
            log.append(self.name)
            return call_next(outgoing)

    outgoing = Outgoing("q", Message("t", "id", b""))

    assert compose_send([Named("a"), Named("b")], lambda item: item)(outgoing) is outgoing
    assert log == ["a", "b"]
