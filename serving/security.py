"""Who may ask: TLS material in the forms that gRPC and `ssl` want it, and bearer tokens."""

import hashlib
import hmac
import os
import ssl
import tempfile
from pathlib import Path

import grpc

from keras_unigan.errors import CodedError
from keras_unigan.serving.status import ServingError

_SHORTEST = 16


def grpc_credentials(certificates):
    """Server credentials for gRPC.

    Args:
        certificates: `config_files.Certificates`.
    """
    return grpc.ssl_server_credentials(
        [(certificates.key.encode(), certificates.certificate.encode())],
        certificates.custom_ca.encode() or None,
        certificates.client_verify,
    )


def ssl_context(certificates):
    """`ssl.SSLContext` of a server from the same material.

    Raises:
        CodedError: KUG-S06 when key and certificate cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # The standard library takes key and certificate from a file only.
    handle, path = tempfile.mkstemp(suffix=".pem")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(f"{certificates.key}\n{certificates.certificate}\n")
        context.load_cert_chain(path)
        if certificates.custom_ca:
            context.load_verify_locations(cadata=certificates.custom_ca)
    except (ssl.SSLError, ValueError) as error:
        raise CodedError(
            "KUG-S06",
            "--ssl_config_file",
            f"a key or certificate that cannot be used ({type(error).__name__})",
            "PEM texts that belong together",
        ) from None
    finally:
        os.unlink(path)
    if certificates.client_verify:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class Tokens:
    """Bearer tokens that requests must carry, and those that may reload the list of models.

    Args:
        user_file: File with one token a line, or "" where any request may pass.
        admin_file: The same for reloads; these tokens pass everywhere. "" leaves reloads to
            whoever may ask at all.

    Raises:
        CodedError: KUG-S06 for a file that is missing, empty or holds a short token.
    """

    def __init__(self, user_file="", admin_file=""):
        self._admins = _read(admin_file, "--admin_token_file")
        users = _read(user_file, "--auth_token_file")
        self._users = None if users is None else users + (self._admins or [])

    def check(self, authorization, admin=False):
        """Refuses a request without a token that it needs.

        Args:
            authorization: Value of the `authorization` header, None without one.
            admin: Whether the request reloads the list of models.

        Raises:
            ServingError: UNAUTHENTICATED without a known token, PERMISSION_DENIED where one of an
                admin is needed.
        """
        scheme, _, token = (authorization or "").partition(" ")
        digest = _digest(token.strip() if scheme.lower() == "bearer" else "")
        if self._users is not None and not _among(digest, self._users):
            raise ServingError("UNAUTHENTICATED", "The request needs a valid bearer token")
        if admin and self._admins is not None and not _among(digest, self._admins):
            raise ServingError("PERMISSION_DENIED", "Reloading needs the token of an admin")


def _read(path, flag):
    if not path:
        return None
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise CodedError("KUG-S06", path, "no readable file", f"the tokens of {flag}") from None
    tokens = [line.strip() for line in lines if line.strip()]
    if not tokens or min(map(len, tokens)) < _SHORTEST:
        raise CodedError(
            "KUG-S06",
            path,
            "no token, or one that can be guessed",
            f"one token a line, {_SHORTEST} characters or more",
            fix="openssl rand -hex 32 > tokens.txt",
        )
    return [_digest(token) for token in tokens]


def _digest(token):
    """Digests have one length, so that comparing tells nothing of a token's."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def _among(digest, known):
    """Compares with every one in constant time."""
    return sum(hmac.compare_digest(digest, other) for other in known) > 0
