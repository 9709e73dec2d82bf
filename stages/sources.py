"""Write a manifest for each stage of each system: the project files that its code consists of, with their digests.

A stage of `dvc.yaml` depends on its own manifest instead of on folders. A digest is taken over the syntax tree without
comments and docstrings, so an edit that changes no code changes no manifest, and DVC reruns nothing.
Conditions: imports are explicit (`import_module` of a project file would be missed), and `conf/` names code by
`_target_`.

DVC itself compares the keys of `conf/system/<system>/<preset>.yaml`. It does not see the files of `conf/shared/` that
such a file names in its `defaults`, so these are in the manifests, too.
"""

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import yaml

from lightning_modules.files import ROOT, replace_folder
from stages.command import run_stage, stage_arguments
from stages.composing import compose
from stages.plan import PlanError

RECORDS_ONLY = {  # these cannot change a result: they record it, or draw what was recorded
    *(f"lightning_modules/tracking/{name}.py" for name in ("records", "logger", "mirror", "model")),
    "stages/arms.py",
    *(f"stages/page/{name}.py" for name in ("__init__", "comparing", "curves", "figures", "moving", "packing")),
}
BLOCKS = {"pretrain": ("model", "data"), "finetune": ("downstream",), "evaluate": ("evaluate",)}  # that name code
TRACKED = {  # blocks of a system's file that a stage depends on in `dvc.yaml`
    "pretrain": {"model", "data", "pretrain"},
    "finetune": {"model", "downstream"},
    "evaluate": {"model", "data", "evaluate"},  # its block may refer to the others
}


def digest(path: Path) -> str:
    """Hash of a Python file's syntax tree without docstrings, of a YAML file's values, or of any other file's bytes."""
    return _read(path, path.stat().st_mtime_ns)[0]


def imported(path: Path) -> list[Path]:
    """The project files that a file imports, at its top or inside a function, and the packages they lie in."""
    return _read(path, path.stat().st_mtime_ns)[1]


@cache
def _read(path: Path, modified: int) -> tuple[str, list[Path]]:
    """Digest and imports of a file; cached, because every manifest asks for the same files."""
    if path.suffix == ".yaml":
        values = json.dumps(_yaml(path), sort_keys=True, default=str)
        return hashlib.sha256(values.encode()).hexdigest()[:16], []
    if path.suffix != ".py":
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16], []
    try:
        tree = ast.parse(path.read_text())
    except (SyntaxError, ValueError) as error:
        raise PlanError(f"{path.relative_to(ROOT)} is no Python: {error}") from None
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    files = dict.fromkeys(file for name in names for file in files_of(name))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16], list(files)


def files_of(module: str) -> Iterator[Path]:
    """The project file of a dotted module name, and the `__init__.py` of each package on the way."""
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        stem = ROOT.joinpath(*parts[:count])
        yield from (file for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file())


def closure(roots: Iterable[Path]) -> dict[str, str]:
    """All project files reachable from `roots` by imports, with their digests."""
    found: dict[str, str] = {}
    todo = list(roots)
    while todo:
        path = todo.pop()
        name = path.relative_to(ROOT).as_posix()
        if name not in found:
            found[name] = digest(path)
            todo += [file for file in imported(path) if file.relative_to(ROOT).as_posix() not in RECORDS_ONLY]
    return dict(sorted(found.items()))


def targets(tree: object) -> Iterator[Path]:
    """Files of the code that a configuration names in `_target_`."""
    if isinstance(tree, dict):
        if "_target_" in tree:
            yield from files_of(tree["_target_"].rpartition(".")[0])
        for value in tree.values():
            yield from targets(value)


def shared(path: Path, blocks: Iterable[str] | None = None) -> Iterator[Path]:
    """Files of `conf/shared/` that a file of `conf/` names in its `defaults`, and those that they name themselves.

    Args:
        path: a file of a system or a data set, or a shared one.
        blocks: only files whose values go into these blocks; all by default.

    Raises:
        PlanError: a line of `defaults` has another form, or names a file that does not exist.
    """
    for line in _yaml(path).get("defaults", []):
        if line == "_self_":
            continue
        name, _, place = line.partition("@") if isinstance(line, str) else ("", "", "")
        if not name.startswith("/shared/") or not place:
            raise PlanError(
                f"{path.relative_to(ROOT)}: defaults has {line!r}, expected `/shared/<folder>/<name>@<block>` or "
                "`_self_`"
            )
        found = ROOT / "conf" / f"{name[1:]}.yaml"
        if not found.is_file():
            raise PlanError(
                f"{path.relative_to(ROOT)}: defaults has {line!r}, but {found.relative_to(ROOT)} does not exist"
            )
        if blocks is None or place.partition(".")[0] in blocks:
            yield found
            yield from shared(found)


def _yaml(path: Path) -> dict:
    return yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}


def manifests(preset: str) -> dict[str, list[Path]]:
    """The files where each stage's code begins: for each data set, system and paper, for the sweeps and for the page.

    They include the files of `conf/shared/` that a data set or system takes values from. They do not depend on the
    plan, so a new arm does not change this stage.
    """
    script = ROOT / "stages"
    found = {"sweep": [script / "sweep.py", *targets(compose(preset, sweep="cached")["sweep"])]}
    for name in configured("dataset", preset):
        code = targets(compose(preset, dataset=name)["dataset"])
        values = shared(ROOT / f"conf/dataset/{name}/{preset}.yaml")
        found[f"prepare.{name}"] = [script / "prepare.py", *code, *values]
    for system in configured("system", preset):
        tree = compose(preset, system=system)["system"]
        for stage, blocks in BLOCKS.items():
            if all(block in tree for block in blocks):
                code = targets({block: tree[block] for block in blocks})
                values = shared(ROOT / f"conf/system/{system}/{preset}.yaml", TRACKED[stage])
                found[f"{stage}.{system}"] = [script / f"{stage}.py", *code, *values]
    for facts in (*(ROOT / "lightning_modules").glob("*/facts.yaml"), *(ROOT / "ideas").glob("*/idea.yaml")):
        found[f"claims.{facts.parent.name}"] = [script / "claims.py", facts]
    page = [file for file in (script / "page").iterdir() if file.suffix in (".py", ".j2", ".css", ".js")]
    return found | {"report": [script / "report.py", *page]}


def configured(group: str, preset: str) -> list[str]:
    """The names in a group of `conf/` that have a file for the preset."""
    return sorted(path.parent.name for path in (ROOT / "conf" / group).glob(f"*/{preset}.yaml"))


def main() -> None:
    """Write the manifests, each into its own file."""
    preset = stage_arguments().preset
    with replace_folder(ROOT / "data/sources" / preset) as out:
        for name, roots in manifests(preset).items():
            (out / f"{name}.json").write_text(json.dumps(closure(roots), indent=1) + "\n")


if __name__ == "__main__":
    run_stage(main)
