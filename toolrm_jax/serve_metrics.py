"""What the server counts, for Prometheus: in a registry of its own, so that apps do not mix.

toolrm_requests_total{endpoint, status}     toolrm_responses_scored_total
toolrm_request_seconds{endpoint}            toolrm_tokens_scored_total
toolrm_batch_sequences                      toolrm_queued_tokens, toolrm_queued_requests

metrics = ServeMetrics()
metrics.window(sequences=8, tokens=900)
metrics.text()
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)
_SEQUENCES = tuple(2**n for n in range(13))


class ServeMetrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        self._requests = Counter(
            "toolrm_requests", "Requests answered.", ["endpoint", "status"], registry=own
        )
        self._latency = Histogram(
            "toolrm_request_seconds",
            "From a request's headers to its answer.",
            ["endpoint"],
            registry=own,
            buckets=_SECONDS,
        )
        self._responses = Counter(
            "toolrm_responses_scored", "Responses (sequences) scored.", registry=own
        )
        self._tokens = Counter(
            "toolrm_tokens_scored", "Tokens of the sequences scored.", registry=own
        )
        self._batch = Histogram(
            "toolrm_batch_sequences", "Sequences scored together.", registry=own, buckets=_SEQUENCES
        )

    def watch(self, name: str, words: str, value: Callable[[], float]) -> None:
        """Reports a number that is read when it is asked for."""
        Gauge(name, words, registry=self._registry).set_function(value)

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        """Counts an answer; `endpoint` is one of the server's own, never what a client sent."""
        self._requests.labels(endpoint, str(status)).inc()
        self._latency.labels(endpoint).observe(seconds)

    def window(self, sequences: int, tokens: int) -> None:
        """Counts what was scored together."""
        self._responses.inc(sequences)
        self._tokens.inc(tokens)
        self._batch.observe(sequences)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)
