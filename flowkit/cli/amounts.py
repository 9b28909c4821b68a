"""Amounts as people read them."""

from __future__ import annotations

_UNITS = ("B", "KB", "MB", "GB", "TB", "PB")


def bytes_text(size: float) -> str:
    """Return an amount of bytes with three digits: ``0 B``, ``1.23 KB``, ``45.6 MB``, ``789 GB`` (by thousands)."""
    unit = 0
    while size >= 999.5 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    if not unit:
        return f"{size:.0f} B"
    digits = 2 if size < 9.995 else 1 if size < 99.95 else 0
    return f"{size:.{digits}f} {_UNITS[unit]}"


def counted(number: int, what: str) -> str:
    """Return a number of things: ``1 run``, ``2,000 runs``."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
