"""Write the README's table of papers from their facts and their committed verdicts: `python -m stages.readme`."""

import json
import re
from collections import Counter
from pathlib import Path

from lightning_modules.files import ROOT, replace_file
from lightning_modules.metrics.claims import VERDICTS, Facts, load_facts
from stages.command import run_stage

TABLE = re.compile(r"(<!-- papers:.*?-->\n).*?(<!-- end of papers -->)", re.DOTALL)


def row(facts: Facts, root: Path = ROOT) -> str:
    """One paper as a line of the table, with dashes if no verdicts are committed yet."""
    link = f"[{facts.title}](https://arxiv.org/abs/{facts.arxiv})"
    guide = f"docs/papers/{facts.stem}.md"
    files = [f"[guide]({guide})"] if (root / guide).is_file() else []  # a paper without a plan has none
    files.append(f"[code](lightning_modules/{facts.stem})")
    files.append(f"[facts](lightning_modules/{facts.stem}/facts.yaml)")
    committed = f"results/tiny/{facts.stem}/claims.json"
    counts = ["-"] * len(VERDICTS)
    if (root / committed).is_file():
        found = Counter(claim["verdict"] for claim in json.loads((root / committed).read_text()))
        counts = [str(found[verdict]) for verdict in VERDICTS]
        files.append(f"[verdicts]({committed})")
    cells = [f"`{facts.stem}`", f"{link}, {facts.venue}", str(len(facts.claims)), *counts, ", ".join(files)]
    return f"| {' | '.join(cells)} |"


def table(root: Path = ROOT) -> str:
    """The table of all papers in the project, with the verdicts of the tiny preset."""
    head = ["stem", "paper", "claims", *VERDICTS, "files"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [row(load_facts(path), root) for path in sorted((root / "lightning_modules").glob("*/facts.yaml"))]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Replace the table between its marks in README.md."""
    readme = ROOT / "README.md"
    text = TABLE.sub(lambda match: match[1] + table() + match[2], readme.read_text())
    with replace_file(readme) as temporary:
        temporary.write_text(text)


if __name__ == "__main__":
    run_stage(main)
