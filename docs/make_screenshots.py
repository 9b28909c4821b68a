"""Makes the pictures of `docs/screen.md`: real commands in a pseudo-terminal, their screens drawn as SVG by rich.

``python docs/make_screenshots.py`` with what ``pip install -e .[dev]`` brings.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "tests" / "cli"))

from pseudo_terminal import PseudoTerminal  # noqa: E402

FLOW = '''
    import math, random, sys, time
    from flowkit import FlowSpec, Parameter, retry, step


    class TrainFlow(FlowSpec):
        """Find the best of many models."""

        models = Parameter("models", default=400)

        @step
        def start(self):
            """Split the data."""
            time.sleep(0.2)
            print("12,000 rows: 9,000 to train, 3,000 to test")
            self.next(self.search, self.baseline)

        @step
        def search(self):
            self.seeds = list(range(self.models))
            self.next(self.train, foreach="seeds")

        @retry(times=2, minutes_between_retries=0)
        @step
        def train(self):
            """Train one model."""
            random.seed(self.input)
            time.sleep(random.expovariate(1 / 0.03))
            self.accuracy = 0.9 + 0.09 * random.random()
            if self.input % 57 == 0:
                print(f"accuracy {self.accuracy:.3f}")
            self.next(self.best)

        @step
        def best(self, inputs):
            """Keep the best one."""
            self.accuracy = max(task.accuracy for task in inputs)
            self.next(self.compare)

        @step
        def baseline(self):
            """What any model must beat."""
            time.sleep(0.5)
            print("the baseline did not converge", file=sys.stderr)
            self.accuracy = 0.83
            self.next(self.compare)

        @step
        def compare(self, inputs):
            one, other = inputs
            self.gain = abs(one.accuracy - other.accuracy)
            self.next(self.end)

        @step
        def end(self):
            print(f"{self.gain:+.3f} over the baseline")


    if __name__ == "__main__":
        TrainFlow()
'''


def main() -> None:
    """Run the flow and keep what was to be seen."""
    images = HERE / "images"
    images.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "train.py").write_text(textwrap.dedent(FLOW).lstrip("\n"), encoding="utf-8")
        env = {name: value for name, value in os.environ.items() if not name.startswith(("FLOWKIT_", "METAFLOW_"))}
        env.update(TERM="xterm-256color", USER="ada", LOGNAME="ada", HOME=folder, FLOWKIT_USER="ada")
        for name in ("NO_COLOR", "CI"):
            env.pop(name, None)

        def terminal(*args: str, rows: int) -> PseudoTerminal:
            return PseudoTerminal([sys.executable, "train.py", *args], folder, env, 92, rows)

        first = terminal("run", rows=24)
        first.wait(300)
        run = terminal("run", rows=24)
        run.until(lambda lines: any(" 1" in line and "/400" in line and "left" in line for line in lines), 300)
        run.until(lambda lines: any(f"{n}/400" in line for line in lines for n in range(220, 260)), 300)
        _keep(run, images / "run.svg", "python train.py run")
        run.wait(300)
        _keep(run, images / "summary.svg", "python train.py run")
        for name in ("show", "status"):
            shown = terminal(name, rows=72)
            shown.wait(60)
            _keep(shown, images / f"{name}.svg", f"python train.py {name}")
            shown.close()


def _keep(terminal: PseudoTerminal, path: Path, title: str) -> None:
    rows = [_text(terminal, row) for row in range(terminal.screen.lines)]
    while rows and not rows[-1].plain.strip():
        rows.pop()
    console = Console(record=True, width=terminal.screen.columns, file=io.StringIO(), force_terminal=True)
    for row in rows:
        console.print(row, no_wrap=True, overflow="crop")
    path.write_text(console.export_svg(title=title, unique_id="flowkit"), encoding="utf-8")


def _text(terminal: PseudoTerminal, row: int) -> Text:
    """Return one row of the screen with its colours."""
    text = Text()
    for column in range(terminal.screen.columns):
        cell: Any = terminal.screen.buffer[row][column]
        colour = {"default": "", "brown": "yellow"}.get(cell.fg, cell.fg.replace("bright", "bright_"))
        text.append(cell.data, style=f"{'bold ' if cell.bold else ''}{colour}".strip() or None)
    return text


if __name__ == "__main__":
    main()
