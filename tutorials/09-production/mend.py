"""Do what the README asks for, for those who would rather not open an editor."""

from pathlib import Path

flow = Path("flow.py")
before = flow.read_text(encoding="utf-8")
after = before.replace("int(label) for label", 'int(label.replace("seven", "7")) for label')
flow.write_text(after, encoding="utf-8")
print("flow.py is mended." if after != before else "flow.py was mended already.")
