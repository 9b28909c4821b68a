"""Mend flow.py in this folder, as one would by hand: python mend.py."""

from pathlib import Path

BROKEN = 'if text == "":'
MENDED = 'if text == "NA":'

file = Path(__file__).with_name("flow.py")
source = file.read_text(encoding="utf-8")
file.write_text(source.replace(BROKEN, MENDED), encoding="utf-8")
print("-", BROKEN)
print("+", MENDED)
