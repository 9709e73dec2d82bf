"""Write, for each stage of each system, which project files its code comes from, with a digest of each.

A stage of `dvc.yaml` depends on its own manifest instead of on folders. A digest is taken over the syntax tree without
comments and docstrings, so an edit that changes no code leaves every manifest as it was, and DVC stops there.
Condition: imports are explicit (`import_module` of a project file would escape) and `conf/` names code by `_target_`.
"""

import ast
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from stages.plan import ROOT, compose, load_plan, run_stage, stage_arguments

RECORDS_ONLY = {  # cannot change a result: they record it, or draw what is recorded
    *(f"lightning_modules/tracking/{name}.py" for name in ("records", "logger", "mirror")),
    *(f"stages/page/{name}.py" for name in ("__init__", "figures")),
}
BLOCKS = {"pretrain": ("model", "data"), "finetune": ("downstream",), "evaluate": ("evaluate",)}


def digest(path: Path) -> str:
    """Hash of a Python file's syntax tree without docstrings, or of any other file's bytes."""
    if path.suffix != ".py":
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def imported(path: Path) -> Iterator[Path]:
    """Project files that a Python file imports, at its top or inside a function, and the packages they lie in."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            yield from files_of(name)


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
            imports = imported(path) if path.suffix == ".py" else ()
            todo += [file for file in imports if file.relative_to(ROOT).as_posix() not in RECORDS_ONLY]
    return dict(sorted(found.items()))


def targets(tree: object) -> Iterator[Path]:
    """Files of the code that a configuration names in `_target_`."""
    if isinstance(tree, dict):
        if "_target_" in tree:
            yield from files_of(tree["_target_"].rpartition(".")[0])
        for value in tree.values():
            yield from targets(value)


def main() -> None:
    """Write one manifest for each data set, each stage of each system, the sweeps, and the report."""
    plan = load_plan(stage_arguments().plan)
    script, out = ROOT / "stages", ROOT / "data/sources" / plan.preset
    manifests = {}
    for name in plan.datasets:
        tree = compose(plan.preset, dataset=name)["dataset"]
        manifests[f"prepare.{name}"] = [script / "prepare.py", *targets(tree)]
    for stage, blocks in BLOCKS.items():
        for system in {row.system for row in getattr(plan, stage).values()}:
            tree = compose(plan.preset, system=system)["system"]
            manifests[f"{stage}.{system}"] = [script / f"{stage}.py", *targets({key: tree[key] for key in blocks})]
    manifests["sweep"] = [script / "sweep.py", *targets(compose(plan.preset, sweep="cached")["sweep"])]
    facts = [ROOT / "lightning_modules" / row.system / "facts.yaml" for row in plan.evaluate.values()]
    page = [file for file in (script / "page").iterdir() if file.suffix in (".py", ".j2", ".css", ".js")]
    manifests["report"] = [script / "report.py", *facts, *page]
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for name, roots in manifests.items():
        (out / f"{name}.json").write_text(json.dumps(closure(roots), indent=1) + "\n")


if __name__ == "__main__":
    run_stage(main)
