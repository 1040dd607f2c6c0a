"""A training as a terminal showed it: the picture docs/images/training.svg, from a run's own log.

    python benchmarks/terminal_picture.py RUN PICTURES --out docs/images/training.svg [--shown runs/digits]

Prints RUN's command and log, leaves out epochs that were not measured, and runs `convzoo predict` on PICTURES for the
last lines. `--shown` is what stands for the path of RUN.
"""

import argparse
import io
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

COLUMNS = 112
LEFT_OUT = "..."
THEME = TerminalTheme(
    (24, 28, 32),
    (226, 230, 234),
    [
        *((24, 28, 32), (224, 108, 100), (126, 200, 140), (230, 180, 90)),  # black, red, green, yellow,
        *((120, 180, 235), (200, 150, 220), (110, 200, 200), (140, 148, 156)),  # blue, magenta, cyan, white
    ],
)
STYLES = [
    (re.compile(r"^\$ .*"), "bold bright_white"),
    (re.compile(r"top-1 [\d.]+ %"), "bold green"),
    (re.compile(r"^epoch \d+/\d+"), "cyan"),
    (re.compile(r"^done:"), "bold green"),
    (re.compile(r"(\d+ of \d+ images|^\s*\.\.\.)"), "white"),
]


def training(run: Path) -> list[str]:
    """Return a run's command and the lines of its log, without the epochs between the first and those measured."""
    lines = [line.split(" ", 2)[2] for line in (run / "train.log").read_text(encoding="utf-8").splitlines()]
    shown: list[str] = []
    for line in lines:
        if not line.startswith("epoch ") or line.startswith("epoch 1/") or " images " in line:
            shown.append(line)
        elif shown[-1] != LEFT_OUT:
            shown.append(LEFT_OUT)
    return [f"$ {(run / 'command.txt').read_text(encoding='utf-8').strip()}", *shown]


def prediction(run: Path, pictures: Path, shown: str) -> list[str]:
    """Return a prediction's command and what it printed, each picture's first two answers and no folder."""
    model = run / "checkpoints/last.safetensors"
    command = [sys.executable, "-m", "convzoo", "predict", str(model), str(pictures)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    answers = [re.sub(r"^\S*/", "", line) for line in done.stdout.splitlines()]
    return [f"$ convzoo predict {shown}/checkpoints/last.safetensors pictures/", *answers]


def svg(lines: list[str]) -> str:
    """Return the lines as a terminal shows them, in a font that is on the reader's machine."""
    console = Console(width=COLUMNS, record=True, file=io.StringIO(), force_terminal=True, legacy_windows=False)
    for line in lines:
        text = Text(line if len(line) <= COLUMNS else f"{line[: COLUMNS - 3]}...", no_wrap=True)
        for pattern, style in STYLES:
            text.highlight_regex(pattern, style)
        console.print(text)
    drawn = console.export_svg(title="convzoo", theme=THEME, unique_id="convzoo")
    drawn = re.sub(r"@font-face \{.*?\}\n?", "", drawn, flags=re.DOTALL)  # which would be fetched from elsewhere
    return drawn.replace("Fira Code", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shown", default="runs/digits")
    arguments = parser.parse_args()
    lines = [*training(arguments.run), "", *prediction(arguments.run, arguments.pictures, arguments.shown)]
    shown = [line.replace(str(arguments.run), arguments.shown) for line in lines]
    arguments.out.write_text(svg(shown) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
