"""URLs of RabbitMQ."""

import pytest

from taskq.brokers import open_broker
from taskq.brokers.amqp_url import parse_urls
from taskq.brokers.base import BrokerOptions
from taskq.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "vhost"),
    [
        ("amqp://host", "/"),
        ("amqp://host/", "/"),
        ("amqp://host:5672", "/"),
        ("amqp://host:5672//", "/"),
        ("amqp://host:5672/%2F", "/"),
        ("amqp://host:5672/shop", "shop"),
        ("amqp://host:5672/%2Fshop", "/shop"),
        ("amqp://host:5672//shop", "/shop"),
        ("amqp://host/a%2Fb?heartbeat=5", "a/b"),
    ],
)
def test_the_path_is_the_vhost(url: str, vhost: str) -> None:
    """Pika reads `//` as an empty name, and every copy of Celery's default URL ends so."""
    (endpoint,) = parse_urls(url, "n")

    assert endpoint.parameters.virtual_host == vhost


def test_the_parts_of_a_url_arrive() -> None:
    """A password may hold any character once it is percent-encoded."""
    (endpoint,) = parse_urls(
        "amqp://us%40er:p%2Fw%3A%40@broker.example:5673/v?heartbeat=7&socket_timeout=1.5", "app"
    )

    parameters = endpoint.parameters
    assert parameters.credentials.username == "us@er"
    assert parameters.credentials.password == "p/w:@"
    assert (parameters.host, parameters.port) == ("broker.example", 5673)
    assert parameters.heartbeat == 7
    assert parameters.socket_timeout == 1.5
    assert parameters.client_properties["connection_name"] == "app"
    assert parameters.ssl_options is None


def test_defaults_are_those_of_a_fresh_broker() -> None:
    """`amqp://` alone is what the quickstart uses."""
    (endpoint,) = parse_urls("amqp://", "n")

    parameters = endpoint.parameters
    assert (parameters.host, parameters.port) == ("localhost", 5672)
    assert (parameters.credentials.username, parameters.credentials.password) == ("guest", "guest")
    assert parameters.heartbeat == 15


def test_amqps_has_its_own_port_and_checks_certificates() -> None:
    """TLS without a check of the name protects from nobody."""
    (endpoint,) = parse_urls("amqps://broker.example", "n")

    context = endpoint.parameters.ssl_options.context
    assert endpoint.parameters.port == 5671
    assert context.check_hostname
    assert endpoint.parameters.ssl_options.server_hostname == "broker.example"


@pytest.mark.parametrize(
    "text",
    [
        "amqp://a:pw@one/v;amqp://b:pw@two/v",
        "amqp://a:pw@one/v,amqp://b:pw@two/v",
        " amqp://a:pw@one/v ; amqp://b:pw@two/v ;",
    ],
)
def test_several_urls_are_a_failover_list(text: str) -> None:
    """Order counts: the first that answers is used."""
    endpoints = parse_urls(text, "n")

    assert [endpoint.parameters.host for endpoint in endpoints] == ["one", "two"]
    assert [endpoint.masked for endpoint in endpoints] == [
        "amqp://a:***@one/v",
        "amqp://b:***@two/v",
    ]


def test_a_comma_in_a_password_separates_nothing() -> None:
    """Generated passwords hold anything."""
    (endpoint,) = parse_urls("amqp://a:x,y@one/v", "n")

    assert endpoint.parameters.credentials.password == "x,y"


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("amqp://host?heartbeet=5", r"'heartbeet'.*did you mean 'heartbeat'"),
        ("amqp://host?heartbeat=soon", "heartbeat is 'soon'"),
        ("amqp://host?heartbeat=-1", "heartbeat"),
        ("amqp://host?socket_timeout=nan", "socket_timeout"),
        ("amqp://host?layout=rq", "layout is 'rq'"),
        ("amqp://host:notaport", "(?i)port"),
        ("amqp://host:99999", "(?i)port"),
        ("amqp://u:p#w@host", "%23"),
        ("amqps://host?cafile=/nowhere.pem", "cafile"),
        ("amqp://one;http://two", "scheme 'http'"),
        ("amqp://[half", "(?i)url"),
        (" ; ", "empty"),
    ],
)
def test_a_bad_url_names_what_is_wrong(url: str, named: str) -> None:
    """A typo in a deployment file must not take an evening."""
    with pytest.raises(ConfigError, match=named):
        parse_urls(url, "n")


@pytest.mark.parametrize(
    "url", ["amqp://u:secret@host:port", "amqp://u:secret@h?x=1", "amqp://u:secret/1@h"]
)
def test_errors_do_not_show_the_password(url: str) -> None:
    """They end in logs and issue trackers."""
    with pytest.raises(ConfigError) as error:
        parse_urls(url, "n")

    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("ampq://u:secret@host", r"'ampq'.*did you mean 'amqp'"),
        ("kafka://host", "amqp://"),
        ("localhost", "no scheme"),
        ("", "no scheme"),
    ],
)
def test_an_unknown_scheme_names_the_known_ones(url: str, named: str) -> None:
    """The commonest mistake is a swapped letter."""
    with pytest.raises(ConfigError, match=named) as error:
        open_broker(url, BrokerOptions())

    assert "secret" not in str(error.value)


def test_a_broker_shows_its_url_without_password() -> None:
    """Banner and doctor print it."""
    broker = open_broker("amqp://u:secret@host/v;amqp://u:other@host2/v", BrokerOptions())

    assert broker.url == "amqp://u:***@host/v;amqp://u:***@host2/v"
    broker.close()
