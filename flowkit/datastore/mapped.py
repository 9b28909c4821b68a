"""Whether a mapped file was written to in memory, told by the kernel instead of by hashing gigabytes."""

from __future__ import annotations

import sys

from flowkit.datastore.encoding import Encoded

_PAGE = 4096
_ENTRY = 8
_BLOCK = 1 << 20
# The last byte of a page's entry in /proc/self/pagemap: bit 7 present, bit 6 swapped, bit 5 still the file's own page.
_CLEAN = bytes(byte for byte in range(256) if not byte & 0xC0 or byte & 0xE0 == 0xA0)


def untouched(view: memoryview, encoded: Encoded) -> bool:
    """Whether a value that was loaded from a mapping is certainly what was stored.

    It is where every piece of its encoding is either equal to the mapping's content or the very memory of the
    mapping in its place, and no page of the mapping is private to this process. False means only that it is not
    known.

    Parameters
    ----------
    view : memoryview
        The mapping that the value was loaded from.
    encoded : Encoded
        The value's encoding now, with large buffers that are its own memory.
    """
    if sys.platform != "linux" or encoded.size != view.nbytes:
        return False
    start = _address(view)
    if start is None:
        return False
    offset = 0
    for chunk in encoded.chunks:
        size = chunk.nbytes if isinstance(chunk, memoryview) else len(chunk)
        place = _address(chunk) if isinstance(chunk, memoryview) else None
        if place != start + offset and (size >= _BLOCK or view[offset : offset + size] != chunk):
            return False
        offset += size
    return _no_private_page(start, view.nbytes)


def _address(memory: memoryview) -> int | None:
    if not memory.nbytes:
        return None
    numpy = sys.modules.get("numpy")
    if numpy is not None:  # takes read-only memory too, such as that of Arrow's arrays
        return int(numpy.frombuffer(memory, numpy.uint8).__array_interface__["data"][0])
    if memory.readonly:
        return None
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _no_private_page(start: int, size: int) -> bool:
    first, last = start // _PAGE, (start + size - 1) // _PAGE
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            file.seek(first * _ENTRY)
            waiting = (last - first + 1) * _ENTRY
            while waiting:
                entries = file.read(min(waiting, _BLOCK))
                if not entries or entries[_ENTRY - 1 :: _ENTRY].translate(None, _CLEAN):
                    return False
                waiting -= len(entries)
    except OSError:  # a sandbox without it
        return False
    return True
