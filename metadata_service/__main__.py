"""``python -m flowkit.metadata_service``: the same as ``flowkit service``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    from flowkit.cli.console_script import main as console

    sys.argv[1:1] = ["service"]
    console()


if __name__ == "__main__":
    main()
