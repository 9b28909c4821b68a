"""Small JSON objects that carry their own checksum.

The file is JSON: ``{"blake3":"<64 hexadecimal digits>","body":{…}}``; the digits are the BLAKE3 of the body's bytes.
Because the prefix has a fixed length, checking needs no parsing, and a torn, empty or altered file is told from a
whole one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from blake3 import blake3

from flowkit.datastore.storage import Missing, Storage
from flowkit.exceptions import DataError

_OPEN = b'{"blake3":"'
_MIDDLE = b'","body":'
_HASH_END = len(_OPEN) + 64
_BODY = _HASH_END + len(_MIDDLE)


class Damaged(DataError):
    """A small object is torn, empty or altered: as far as results go, what it would say never happened."""


def seal(body: dict[str, Any]) -> bytes:
    """Return the file's content."""
    text = json.dumps(body, separators=(",", ":")).encode()
    return b"%b%b%b%b}" % (_OPEN, blake3(text).hexdigest().encode(), _MIDDLE, text)


def unseal(content: bytes, where: str) -> dict[str, Any]:
    """Return the body.

    Parameters
    ----------
    content : bytes
        What `seal` made.
    where : str
        What to call it in an error.

    Raises
    ------
    Damaged
        If its checksum does not fit.
    """
    body = content[_BODY:-1]
    whole = content.startswith(_OPEN) and content[_HASH_END:_BODY] == _MIDDLE and content.endswith(b"}")
    if not whole or blake3(body).hexdigest().encode() != content[len(_OPEN) : _HASH_END]:
        raise Damaged(f"{where} is damaged: its checksum does not fit", "what it recorded counts as never happened")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{where} is damaged: {error}", "what it recorded counts as never happened") from error
    if not isinstance(found, dict):
        raise Damaged(f"{where} is damaged: it holds no object", "what it recorded counts as never happened")
    return found


def read_sealed(storage: Storage, path: str) -> dict[str, Any] | None:
    """Return the body of an object; None where there is no object.

    Raises
    ------
    Damaged
        If it is torn or altered.
    """
    try:
        content = storage.read(path)
    except Missing:
        return None
    return unseal(content, f"{storage.root}/{path}")


def create_sealed(storage: Storage, path: str, body: dict[str, Any], facts: Mapping[str, str] | None = None) -> bool:
    """Write an object if there is none; return whether this call made it.

    `facts` are short texts for those who look at it from outside (`Storage.create_told`).

    Where the storage reports an error, the object may have been written all the same, with only the reply lost: it
    is read back, and counts if it is this very one.
    """
    content = seal(body)
    try:
        return storage.create(path, [content]) if facts is None else storage.create_told(path, [content], facts)
    except DataError:
        try:
            if storage.read(path) == content:
                return True
        except (Missing, DataError):
            pass
        raise
