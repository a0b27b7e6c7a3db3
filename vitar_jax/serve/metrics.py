"""The server's metrics in Prometheus' text format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counts and times of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = {"namespace": "vitar", "registry": self.registry}
        self.requests = Counter("requests", "Requests by path and status; 499: the client left.", ["path", "status"], **own)
        self.seconds = Histogram("request_seconds", "Time from a chat request to its last byte.", buckets=_SECONDS, **own)
        self.first = Histogram("first_token_seconds", "Time from a chat request to its first token.", buckets=_SECONDS, **own)
        self.tokens = Counter("tokens", "Tokens of chat requests by kind: prompt or completion.", ["kind"], **own)
        self.episodes = Gauge("episodes", "Episodes that begin, wait or play.", **own)
        self.slots = Gauge("slots", "Maximum number of episodes that play at a time.", **own)
