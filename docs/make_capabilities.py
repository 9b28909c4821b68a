"""Write the table of what runs where into docs/deploying.md, from the data that `create` goes by.

``python docs/make_capabilities.py``; a test checks that the page is what the data says.
"""

from __future__ import annotations

from pathlib import Path

from flowkit.deployer.capabilities import FEATURES, TABLE, TARGETS, YES

PAGE = Path(__file__).with_name("deploying.md")
BEGIN = "<!-- made by docs/make_capabilities.py -->\n"
END = "<!-- end -->"


def table() -> str:
    """Return the table as Markdown, with the notes of its cells below it."""
    notes: list[str] = []
    lines = [f"| | {' | '.join(f'`{target}`' for target in TARGETS)} |", "|---" * (len(TARGETS) + 1) + "|"]
    for feature in FEATURES:
        cells = []
        for target in TARGETS:
            cell = TABLE[target].get(feature.name, YES)
            if cell.note and cell.note not in notes:
                notes.append(cell.note)
            cells.append(cell.support + (f" ({notes.index(cell.note) + 1})" if cell.note else ""))
        lines.append(f"| {feature.label} | {' | '.join(cells)} |")
    below = [f"{number}. {note}" for number, note in enumerate(notes, 1)]
    return "\n".join(["", *lines, "", *below, ""])


def page(text: str) -> str:
    """Return a page with the table in its place."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE} has no place for the table: {BEGIN.strip()} … {END}")
    return f"{before}{begin}{table()}\n{end}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
