"""Speed and memory, as ratios measured in one run: `make bench`. `--save` writes the table to benchmarks/README.md.

Each module beside this one has `main() -> list[dict]`: a row says what was measured, the figures, and the target. It is
about the paper of its name, or about those in its `PAPERS`; others are about what all papers share.
"""

import argparse
import importlib
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from lightning_modules import portable

FOLDER = Path(__file__).parent
HEAD = """# Benchmarks

What `make bench` measured last (`python -m benchmarks --save` writes this page). Times on shared machines mean
little by themselves: read the ratios, which are taken within one run.

"""


def names() -> list[str]:
    """The benchmarks in this folder."""
    return sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))


def about(name: str, papers: Iterable[str]) -> bool:
    """Whether a benchmark is about one of these papers."""
    return bool({name, *getattr(importlib.import_module(f"benchmarks.{name}"), "PAPERS", ())} & set(papers))


def hardware() -> str:
    """Where and on which code the figures were taken."""
    import torch

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=FOLDER).stdout
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return f"{portable.processor()}, {os.cpu_count()} cores{gpu}; torch {torch.__version__}; commit {commit.strip()}"


def table(name: str, rows: list[dict]) -> str:
    """Rows of one benchmark as a Markdown table."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(column)) for column in columns] for row in rows)]
    return f"## {name}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return (
        f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str("" if value is None else value)
    )


def main() -> None:
    """Run the named benchmarks, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"any of {', '.join(names())}; all by default")
    parser.add_argument("--paper", nargs="+", default=[], help="only those about these papers")
    parser.add_argument("--save", action="store_true", help="write benchmarks/README.md")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - set(names())):
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(names())}")
    chosen = [name for name in arguments.names or names() if not arguments.paper or about(name, arguments.paper)]
    if not chosen:
        parser.error(f"no benchmark is about {', '.join(arguments.paper)}")
    page = [HEAD + hardware() + "\n"]
    print(page[0])
    for name in chosen:
        page.append(table(name, importlib.import_module(f"benchmarks.{name}").main()))
        print(page[-1], flush=True)
    if arguments.save:
        (FOLDER / "README.md").write_text("\n".join(page))


if __name__ == "__main__":
    main()
