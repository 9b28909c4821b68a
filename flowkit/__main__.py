"""``python -m flowkit`` is the command ``flowkit``."""

from __future__ import annotations

from flowkit.cli.console_script import main

if __name__ == "__main__":
    main()
