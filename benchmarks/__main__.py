"""Speed and memory, as ratios measured in one run: `make bench`. `--save` puts the tables into benchmarks/README.md.

Each module beside this one has `main() -> list[dict]`: a row says what was measured, the figures, and the target. It is
about the paper of its name, or about those in its `PAPERS`; others are about what all papers share. `_measuring.py` has
how several of them measure. Each runs in a process of its own: none measures what another has imported or keeps.
"""

import argparse
import importlib
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from lightning_modules import portable
from lightning_modules.files import replace_file

FOLDER = Path(__file__).parent
HEAD = """# Benchmarks

What was measured last: `python -m benchmarks --save` writes this page, or the tables of the benchmarks that are named.
Times on shared machines mean little by themselves: read the ratios, which are taken within one run.
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


def section(name: str, rows: list[dict]) -> str:
    """Rows of one benchmark as a Markdown table, with where they were measured."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(column)) for column in columns] for row in rows)]
    return f"## {name}\n\n{hardware()}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return (
        f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str("" if value is None else value)
    )


def save(found: dict[str, str]) -> None:
    """Put sections into the page; those of other benchmarks stay, those of benchmarks that are gone do not."""
    path = FOLDER / "README.md"
    _, *kept = path.read_text().split("\n## ") if path.is_file() else [""]
    sections = {text.partition("\n")[0]: f"## {text.rstrip()}\n" for text in kept} | found
    with replace_file(path) as temporary:
        temporary.write_text("\n".join([HEAD, *(sections[name] for name in names() if name in sections)]))


def main() -> None:
    """Run the named benchmarks, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"any of {', '.join(names())}; all by default")
    parser.add_argument("--paper", nargs="+", default=[], help="only those about these papers")
    parser.add_argument("--save", action="store_true", help="put the tables into benchmarks/README.md")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - set(names())):
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(names())}")
    chosen = [name for name in arguments.names or names() if not arguments.paper or about(name, arguments.paper)]
    if not chosen:
        parser.error(f"no benchmark is about {', '.join(arguments.paper)}")
    if len(chosen) > 1:
        failed = [name for name in chosen if _alone(name, arguments.save)]  # the others are measured all the same
        raise SystemExit(f"error: {', '.join(failed)} failed; the messages are above" if failed else 0)
    (name,) = chosen
    found = section(name, importlib.import_module(f"benchmarks.{name}").main())
    print(found, flush=True)
    if arguments.save:
        save({name: found})


def _alone(name: str, keep: bool) -> int:
    """Run one benchmark in a process of its own; its exit status."""
    return subprocess.run([sys.executable, "-m", "benchmarks", name, *["--save"] * keep], cwd=FOLDER.parent).returncode


if __name__ == "__main__":
    main()
