"""Figures of the server in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server.

    Args:
        waiting: bytes of images that wait now.
        classes: classes of the current model.
        loads: models loaded since the start.
    """

    def __init__(self, waiting: Callable[[], int], classes: Callable[[], int], loads: Callable[[], int]) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("ostinato_requests", "Requests.", ["path", "status"], registry=registry)
        self.seconds = Histogram(
            "ostinato_request_seconds", "Duration of requests.", ["path"], buckets=_SECONDS, registry=registry
        )
        self.images = Counter("ostinato_images", "Images by result.", ["result"], registry=registry)
        self.batches = Histogram("ostinato_batch_images", "Images per batch.", buckets=_IMAGES, registry=registry)
        for name, about, value in (
            ("ostinato_waiting_bytes", "Bytes of images that wait for the model.", waiting),
            ("ostinato_classes", "Classes of the current model.", classes),
            ("ostinato_model_loads", "Models loaded since the start.", loads),
        ):
            Gauge(name, about, registry=registry).set_function(value)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """All figures."""
        return generate_latest(self.registry)
