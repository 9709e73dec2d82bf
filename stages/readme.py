"""Write the README's table of papers from their facts: `python -m stages.readme`."""

import re

from lightning_modules.files import ROOT, replace_file
from lightning_modules.metrics.claims import Facts, load_facts
from stages.command import run_stage

TABLE = re.compile(r"(<!-- papers:.*?-->\n).*?(<!-- end of papers -->)", re.DOTALL)


def row(facts: Facts) -> str:
    """One paper as a line of the table."""
    link = f"[{facts.title}](https://arxiv.org/abs/{facts.arxiv})"
    files = f"[code](lightning_modules/{facts.stem}), [facts](lightning_modules/{facts.stem}/facts.yaml)"
    tiny = sum("tiny" in claim.presets for claim in facts.claims)
    return f"| `{facts.stem}` | {link}, {facts.venue} | {len(facts.claims)} ({tiny} at tiny scale) | {files} |"


def table() -> str:
    """The table of all papers that the project holds."""
    lines = ["| stem | paper | claims | files |", "|---|---|---|---|"]
    lines += [row(load_facts(path)) for path in sorted((ROOT / "lightning_modules").glob("*/facts.yaml"))]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Put the table between its marks."""
    readme = ROOT / "README.md"
    text = TABLE.sub(lambda match: match[1] + table() + match[2], readme.read_text())
    with replace_file(readme) as temporary:
        temporary.write_text(text)


if __name__ == "__main__":
    run_stage(main)
