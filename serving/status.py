"""Codes and texts that both protocols answer with; standard library only.

A message names what the client has to change. It never holds a value of the request: scans are
somebody's body, and messages end in logs.
"""

import re

# gRPC's code numbers and what REST answers for each.
CODES = {
    "OK": (0, 200),
    "CANCELLED": (1, 499),
    "UNKNOWN": (2, 500),
    "INVALID_ARGUMENT": (3, 400),
    "DEADLINE_EXCEEDED": (4, 504),
    "NOT_FOUND": (5, 404),
    "ALREADY_EXISTS": (6, 409),
    "PERMISSION_DENIED": (7, 403),
    "RESOURCE_EXHAUSTED": (8, 429),
    "FAILED_PRECONDITION": (9, 400),
    "ABORTED": (10, 409),
    "OUT_OF_RANGE": (11, 400),
    "UNIMPLEMENTED": (12, 501),
    "INTERNAL": (13, 500),
    "UNAVAILABLE": (14, 503),
    "DATA_LOSS": (15, 500),
    "UNAUTHENTICATED": (16, 401),
}
NAMES = {number: name for name, (number, _) in CODES.items()}

MAX_MESSAGE_BYTES = 1024
_CUT = "...TRUNCATED"


class ServingError(Exception):
    """An answer that is not OK.

    Args:
        code: Key of `CODES`.
        message: What the client reads; cut at 1024 bytes as TensorFlow Serving does.
    """

    def __init__(self, code, message):
        self.code, self.message = code, truncate(message)
        super().__init__(f"{code}: {self.message}")

    @property
    def number(self):
        """GRPC's number of the code."""
        return CODES[self.code][0]

    @property
    def http(self):
        """HTTP status of the code."""
        return CODES[self.code][1]


def invalid(message):
    """The most common answer: INVALID_ARGUMENT."""
    return ServingError("INVALID_ARGUMENT", message)


def truncate(message):
    """Cuts a message to 1024 bytes of UTF-8 and says so; control characters become spaces."""
    message = re.sub(r"[\x00-\x1f\x7f]", " ", message)
    data = message.encode("utf-8", "replace")
    if len(data) <= MAX_MESSAGE_BYTES:
        return data.decode("utf-8")
    return data[: MAX_MESSAGE_BYTES - len(_CUT)].decode("utf-8", "ignore") + _CUT
