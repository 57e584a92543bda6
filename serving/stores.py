"""Versions in an object store (gs://, s3://, … whatever `tf.io.gfile` opens), which cannot rename.

There `saved_model.pb` is written last: a folder without it is no version yet. Servers should be
told which versions to serve (policy "specific"), because a stock one that looks for the latest
tries an unfinished folder, and gives it up.
"""

import posixpath
import uuid
from pathlib import Path

from keras_unigan.errors import CodedError
from keras_unigan.serving import folders

GRAPH = "saved_model.pb"
_CLAIMS = ".claims"


def is_store(base):
    """Whether a base path is a URI of a store."""
    return "://" in str(base)


def _gfile():
    import tensorflow as tf

    return tf.io.gfile


def scan(base):
    """Versions that are whole: number -> URI."""
    gfile = _gfile()
    if not gfile.isdir(base):
        return {}
    names = [name.rstrip("/") for name in gfile.listdir(base)]
    found = {int(n): posixpath.join(base, n) for n in names if n.isascii() and n.isdigit()}
    return {n: path for n, path in found.items() if gfile.exists(posixpath.join(path, GRAPH))}


def digest(path):
    """Digest that a version's manifest states, or None."""
    import json

    name = posixpath.join(path, folders.MANIFEST)
    if not _gfile().exists(name):
        return None
    try:
        return json.loads(_read(name)).get("digest")
    except ValueError:
        return None


def _read(path):
    with _gfile().GFile(path, "rb") as file:
        return file.read()


def _write(path, data):
    gfile = _gfile()
    gfile.makedirs(posixpath.dirname(path))
    with gfile.GFile(path, "wb") as file:
        file.write(data)


def publish(source, base, manifest):
    """Copies a SavedModel under a number that nobody else gets.

    Args:
        source: Local SavedModel folder.
        base: URI of the model.
        manifest: `folders.describe(source)`.

    Returns:
        `(number, URI)`.

    Raises:
        CodedError: KUG-S06 when a file arrives with another size.
    """
    source = Path(source)
    number = _claim(base)
    target = posixpath.join(base, str(number))
    paths = [p for p in sorted(source.rglob("*")) if p.is_file()]
    names = [p.relative_to(source).as_posix() for p in paths]
    for name in sorted((n for n in names if n != folders.MANIFEST), key=lambda n: n == GRAPH):
        if name == GRAPH:
            _write(posixpath.join(target, folders.MANIFEST), folders.text(manifest).encode())
        data = (source / name).read_bytes()
        _write(posixpath.join(target, name), data)
        size = _gfile().stat(posixpath.join(target, name)).length
        if size != len(data):
            raise CodedError(
                "KUG-S06", target, f"{size} bytes of a file of {len(data)}", "all of them"
            )
    return number, target


def _claim(base):
    """A number above all that were ever given, for this push alone.

    A store has no lock. Each push writes a claim and then looks: who sees another claim on the
    number goes on to the next one, so at most one stays. A number may be left out, never shared.
    """
    gfile, mine = _gfile(), uuid.uuid4().hex
    place = posixpath.join(base, _CLAIMS)
    while True:
        number = max([*scan_all(base), *(n for n, _ in _claims(place))], default=0) + 1
        _write(posixpath.join(place, f"{number}-{mine}"), b"")
        owners = {owner for n, owner in _claims(place) if n == number}
        if owners == {mine} and not gfile.exists(posixpath.join(base, str(number))):
            return number


def scan_all(base):
    """Numbers of all folders, whole or not."""
    gfile = _gfile()
    names = [n.rstrip("/") for n in gfile.listdir(base)] if gfile.isdir(base) else []
    return [int(n) for n in names if n.isascii() and n.isdigit()]


def _claims(place):
    gfile = _gfile()
    names = gfile.listdir(place) if gfile.isdir(place) else []
    parts = [name.rstrip("/").partition("-") for name in names]
    return [(int(number), owner) for number, _, owner in parts if number.isdigit()]


def remove(path):
    """Takes a version away: first what makes it one, then the rest."""
    gfile = _gfile()
    gfile.remove(posixpath.join(path, GRAPH))
    gfile.rmtree(path)
