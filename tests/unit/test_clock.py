"""The wall clock without its steps."""

from taskq.clock import SteadyClock

MINUTE_NS = 60 * 10**9


class Host:
    """A machine's two clocks."""

    def __init__(self) -> None:
        self.steady_ns = 5 * MINUTE_NS
        self.ahead_ns = 10**18
        self.clock = SteadyClock(lambda: self.steady_ns + self.ahead_ns, lambda: self.steady_ns)

    def true_ms(self) -> int:
        return (self.steady_ns + 10**18) // 10**6


def test_a_step_does_not_count_before_ten_minutes() -> None:
    """Ahead, delayed tasks would start early; back, they would be a minute late."""
    host = Host()
    for step_ns in (MINUTE_NS, -MINUTE_NS):
        host.ahead_ns = 10**18 + step_ns
        for _ in range(9):
            assert host.clock.now_ms() == host.true_ms()
            host.steady_ns += MINUTE_NS


def test_a_step_that_stands_is_believed() -> None:
    """It was the correction of a wrong clock; a worker that never took it would need a restart."""
    host = Host()
    host.ahead_ns += MINUTE_NS
    assert host.clock.now_ms() == host.true_ms()
    host.steady_ns += 10 * MINUTE_NS

    assert host.clock.now_ms() == host.true_ms() + 60_000
    assert host.clock.now_ms() == host.true_ms() + 60_000


def test_each_step_has_its_own_ten_minutes() -> None:
    host = Host()
    host.ahead_ns += MINUTE_NS
    assert host.clock.now_ms() == host.true_ms()
    host.steady_ns += 9 * MINUTE_NS
    host.ahead_ns += 5 * MINUTE_NS
    assert host.clock.now_ms() == host.true_ms()
    host.steady_ns += 2 * MINUTE_NS

    assert host.clock.now_ms() == host.true_ms()


def test_what_was_set_right_again_counts_at_once() -> None:
    host = Host()
    host.ahead_ns += MINUTE_NS
    assert host.clock.now_ms() == host.true_ms()
    host.ahead_ns -= MINUTE_NS
    host.steady_ns += MINUTE_NS

    assert host.clock.now_ms() == host.true_ms()


def test_small_corrections_are_followed_however_many() -> None:
    """NTP moves a clock by parts of a second, and that adds up over months."""
    host = Host()
    for _ in range(100):
        host.ahead_ns += 900_000_000
        host.steady_ns += 10**9
        assert host.clock.now_ms() == (host.steady_ns + host.ahead_ns) // 10**6
