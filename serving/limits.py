"""What one request, and all of them together, may take: places, bytes, unpacked bytes."""

import contextlib
import dataclasses
import threading
import zlib

from keras_unigan.serving.status import ServingError, invalid

# More than this of a stream never lies in memory while it is measured.
_STEP_BYTES = 2**20
# Message that a protobuf can still be; also the most that a compressed body may grow to.
MAX_BYTES = 2**31 - 1
# Deflate packs at most 1032 to one.
_BEST_RATIO = 1032


def exhausted(text):
    """RESOURCE_EXHAUSTED: the client may try again later, or has to send less."""
    return ServingError("RESOURCE_EXHAUSTED", text)


def too_long(limit):
    """The answer for a message that is longer than allowed; the text is gRPC's own."""
    return exhausted(f"Received message larger than max ({limit} bytes)")


@dataclasses.dataclass
class Place:
    """One request in flight.

    Attributes:
        bytes: Bytes of it that have arrived.
        counted: Whether it is one of those that are limited.
    """

    bytes: int
    counted: bool


class Gate:
    """Counts what is in flight, refuses what is too much, and tells when nothing is left.

    Refusing at once is what keeps those in flight fast: a queue that only grows fails them all.

    Args:
        most_requests: Limited requests that may be in flight.
        most_bytes: Bytes that all requests in flight may have; 0 is unlimited.
    """

    def __init__(self, most_requests, most_bytes=0):
        self._most_requests, self._most_bytes = most_requests, most_bytes
        self._condition = threading.Condition()
        self._requests = self._limited = self._bytes = 0
        self.closed = False

    @contextlib.contextmanager
    def enter(self, size, counted=True):
        """Takes a place while the block runs.

        Args:
            size: Bytes of the request that have arrived.
            counted: Whether the limits hold for it; probes of the status always get an answer.

        Yields:
            `Place`, for `grow`.

        Raises:
            ServingError: UNAVAILABLE once closed, RESOURCE_EXHAUSTED where there is no place.
        """
        place = Place(0, counted)
        with self._condition:
            if self.closed:
                raise ServingError("UNAVAILABLE", "The server is shutting down")
            if counted and self._limited >= self._most_requests:
                raise exhausted(f"The server has {self._most_requests} requests in flight already")
            self._requests += 1
            self._limited += counted
        try:
            self.grow(place, size)
            yield place
        finally:
            with self._condition:
                self._requests -= 1
                self._limited -= counted
                self._bytes -= place.bytes
                self._condition.notify_all()

    def grow(self, place, size):
        """Adds bytes that have arrived to a place.

        Raises:
            ServingError: RESOURCE_EXHAUSTED where they are too many with those of the others.
        """
        with self._condition:
            if place.counted and 0 < self._most_bytes < self._bytes + size:
                raise exhausted("The requests in flight take all bytes that the server allows")
            self._bytes += size
            place.bytes += size

    def close(self):
        """Lets nobody in from now on."""
        with self._condition:
            self.closed = True

    def wait_idle(self, seconds):
        """Waits until nothing is in flight; returns whether that came to pass in time."""
        with self._condition:
            return self._condition.wait_for(lambda: not self._requests, seconds)


def check_tensors(size, limit):
    """Refuses tensors that take more than `limit` bytes; 0 is unlimited."""
    if 0 < limit < size:
        raise exhausted(f"The tensors of the request take more than max ({limit} bytes)")


def check_gzip(data, limit):
    """Refuses a gzip stream that unpacks to more than `limit` bytes, without holding them.

    Args:
        data: Bytes that may be gzip; others pass.
        limit: Most bytes.

    Raises:
        ServingError: RESOURCE_EXHAUSTED for a bomb, INVALID_ARGUMENT for a damaged stream.
    """
    if not data.startswith(b"\x1f\x8b") or len(data) * _BEST_RATIO <= limit:
        return
    unpack, total = zlib.decompressobj(wbits=31), 0
    try:
        rest = data
        while rest and not unpack.eof:
            total += len(unpack.decompress(rest, _STEP_BYTES))
            rest = unpack.unconsumed_tail
            if total > limit:
                raise too_long(limit)
    except zlib.error:
        raise invalid("The gzip stream is damaged") from None
