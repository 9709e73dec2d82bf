"""The pages of the documentation site (mkdocs): `make docs` runs this as a hook of mkdocs.yml.

Nothing is written twice. The pages are sections of README.md, CONTRIBUTING.md, the guides in docs/papers and the
docstrings of the code. A link to a file of the repository leads to the page that shows it: code to its reference, other
files to a copy. A link that leads nowhere ends the build.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
README = {  # page -> its sections of README.md; the first page also has what stands before all sections
    "index.md": ("Why", "Papers", "Where to find what"),
    "reproduce.md": ("Use", "Numbers and processors"),
    "idea.md": ("Hold your own idea against a paper",),
    "scale.md": ("At paper scale", "Stop a training and go on", "On many machines"),
    "models.md": ("Use as a library", "Your pictures and videos"),
    "add.md": ("Add a paper",),
}
TITLES = {  # of pages with several sections
    "reproduce.md": "Reproduce a paper",
    "scale.md": "Large and long runs",
    "models.md": "Use the models",
}
WHOLE = {"CONTRIBUTING.md": "design.md", "benchmarks/README.md": "benchmarks.md"}
CODE = ("lightning_modules", "stages")
HEADING = re.compile(r"^(#{1,6}) (.+)$", re.MULTILINE)
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that have no file of their own, and the files that pages link to."""
    pages = _pages()
    made = {page: text for page, (_, text) in pages.items()}
    places = {(source, _slug(heading)): page for page, (source, text) in pages.items() for heading in _headings(text)}
    copies: set[str] = set()
    for page, (source, text) in pages.items():
        made[page] = _linked(text, page, source, places, copies)
    for guide in sorted((ROOT / "docs/papers").glob("*.md")):
        page = f"papers/{guide.name}"
        files.remove(files.get_file_from_path(page))
        made[page] = _linked(guide.read_text(encoding="utf-8"), page, f"docs/{page}", places, copies)
    made |= dict(_reference())
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    for path in sorted(copies):
        files.append(File.generated(config, f"files/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_context(context: dict, page: Page, config: MkDocsConfig, nav: object) -> dict:
    """Generated pages have no place of their own to be edited."""
    page.edit_url = None
    return context


def _pages() -> dict[str, tuple[str, str]]:
    """Page -> the file that it comes from, and its text."""
    before, sections = _sections((ROOT / "README.md").read_text(encoding="utf-8"))
    if missing := {name for names in README.values() for name in names} ^ set(sections):
        raise PluginError(f"docs/site.py: README.md and the list of its sections differ by {sorted(missing)}")
    found = {}
    for page, names in README.items():
        head = before if page == "index.md" else f"# {TITLES.get(page, names[0])}\n"
        parts = [sections[name] if len(names) > 1 else sections[name].partition("\n")[2] for name in names]
        found[page] = ("README.md", "\n".join([head, *parts]))
    for source, page in WHOLE.items():
        found[page] = (source, (ROOT / source).read_text(encoding="utf-8"))
    found["claims.md"] = ("claims.md", "# How claims are judged\n\n::: lightning_modules.metrics.claims\n")
    return found


def _sections(text: str) -> tuple[str, dict[str, str]]:
    """What stands before the first section of a Markdown file, and its sections of the second level, by name."""
    before, *parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    return before, {part.partition("\n")[0].removeprefix("## "): part for part in parts}


def _headings(text: str) -> Iterator[str]:
    for part in FENCE.split(text)[::2]:
        yield from (match[2] for match in HEADING.finditer(part))


def _slug(heading: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def _linked(text: str, page: str, source: str, places: dict[tuple[str, str], str], copies: set[str]) -> str:
    """The text with links that hold on the site, outside of its blocks of code."""

    def replaced(match: re.Match) -> str:
        target = match[2]
        if re.match(r"[a-z]+:", target):
            return match[0]
        path, _, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path)) if path else source
        found = _place(path, anchor, places, copies)
        if found is None:
            raise PluginError(f"{source}: the link to {target} leads nowhere")
        file, _, place = found.partition("#")
        relative = posixpath.relpath(file, posixpath.dirname(page) or ".")
        return f"{match[1]}({relative}{'#' if place else ''}{place})"

    parts = FENCE.split(text)
    parts[::2] = [LINK.sub(replaced, part) for part in parts[::2]]
    return "".join(parts)


def _place(path: str, anchor: str, places: dict[tuple[str, str], str], copies: set[str]) -> str | None:
    """The page, with an anchor, that shows a file of the repository; None if there is no such file or anchor."""
    if path.startswith("docs/papers/"):
        return f"{path.removeprefix('docs/')}{'#' if anchor else ''}{anchor}" if (ROOT / path).is_file() else None
    if anchor:
        page = places.get((path, anchor))
        return page and f"{page}#{anchor}"
    if path == "README.md" or path in WHOLE:
        return WHOLE.get(path, "index.md")
    folder, *rest = path.removesuffix(".py").split("/")
    if folder in CODE and ((ROOT / path).is_dir() or path.endswith(".py")) and (ROOT / path).exists():
        package = ".".join([folder, *rest[: 1 if (ROOT / folder / rest[0]).is_dir() else 0]]) if rest else folder
        return f"reference/{package}.md" + (f"#{'.'.join([folder, *rest])}" if path.endswith(".py") else "")
    if (ROOT / path).is_file():
        copies.add(path)
        return f"files/{path}"
    return None


def _reference() -> Iterator[tuple[str, str]]:
    """A page for each package, with the public names of its modules."""
    for code in CODE:
        for package in [ROOT / code, *(path.parent for path in sorted((ROOT / code).glob("*/__init__.py")))]:
            files = package.glob("*.py") if package == ROOT / code else package.rglob("*.py")
            documented = [path.relative_to(ROOT) for path in sorted(files) if path.stat().st_size]
            modules = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in documented]
            name = ".".join(package.relative_to(ROOT).parts)
            yield f"reference/{name}.md", f"# `{name}`\n\n" + "\n".join(f"::: {module}\n" for module in modules)
