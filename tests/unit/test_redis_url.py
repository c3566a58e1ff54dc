"""Redis URLs, without a server."""

import pytest

from taskq.errors import ConfigError
from taskq.results.redis_url import parse_url


def test_every_part_of_a_url_is_read() -> None:
    """Percent-encoded credentials are what cloud providers hand out."""
    address = parse_url("redis://us%40er:p%2Fw@db.example:6400/7?prefix=shop:&timeout=2.5", 5.0)

    assert address.arguments["username"] == "us@er"
    assert address.arguments["password"] == "p/w"
    assert address.arguments["host"] == "db.example"
    assert address.arguments["port"] == 6400
    assert address.arguments["db"] == 7
    assert address.arguments["socket_timeout"] == 2.5
    assert address.prefix == "shop"
    assert address.masked == "redis://us%40er:***@db.example:6400/7?prefix=shop:&timeout=2.5"


def test_what_is_left_out_has_the_usual_value() -> None:
    """`redis://` alone is the server of this machine."""
    address = parse_url("redis://", 5.0)

    assert (address.arguments["host"], address.arguments["port"]) == ("localhost", 6379)
    assert (address.arguments["db"], address.prefix, address.timeout_s) == (0, "taskq", 5.0)


def test_an_ipv6_host_keeps_its_meaning() -> None:
    """The colons of the address are not the port's."""
    assert parse_url("redis://[::1]:6380/1", 5.0).arguments["host"] == "::1"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://host:port/0", "malformed"),
        ("redis://host:99999/0", "malformed"),
        ("redis://[::1/0", "malformed"),
        ("http://host/0", "scheme"),
        ("redis://host/one", "number"),
        ("redis://host/-1", "number"),
        ("redis://host/0?db=x", "number"),
        ("redis://host/0?prefx=a", "prefix"),
        ("redis://host/0?nonsense=1", "unknown option"),
        ("redis://host/0?prefix=", "prefix"),
        ("redis://host/0?prefix=a%20b", "prefix"),
        ("redis://host/0?timeout=0", "above 0"),
        ("redis://host/0?timeout=nan", "above 0"),
        ("redis://host/0?timeout=soon", "above 0"),
        ("redis://host/0?max_connections=0", "from 1"),
        ("redis://host/0?ssl_ca_certs=/ca.pem", "rediss"),
        ("rediss://host/0?ssl_cert_reqs=maybe", "required"),
        ("rediss://host/0?ssl_check_hostname=maybe", "yes or no"),
        ("unix://", "socket"),
        ("unix://relative/redis.sock", "socket"),
    ],
)
def test_a_wrong_url_is_named_with_its_cure(url: str, said: str) -> None:
    """The error is read by someone who has just mistyped it."""
    with pytest.raises(ConfigError, match=said):
        parse_url(url, 5.0)


def test_no_password_is_ever_shown() -> None:
    """Errors and banners end up in logs."""
    for url in ("redis://:s3cret@host/x", "redis://u:s3cret@host/0?bad=1", "http://u:s3cret@h/"):
        with pytest.raises(ConfigError) as caught:
            parse_url(url, 5.0)
        assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(parse_url("redis://u:s3cret@host/0", 5.0))
