"""Reads the locks of a preset and checks that they belong to the code, the configuration and the plan in the checkout.

Nothing is run and no data is needed. A lock entry records the command, the parameters, the manifest of the code (see
`sources`) and the digests of what a stage reads and writes. Each of these is compared with the checkout.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.plan import parts

if TYPE_CHECKING:
    from dvc.dependency import Dependency, ParamsDependency
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

NOTHING = "nothing"


@dataclass(frozen=True)
class Locked:
    """One stage of a paper's plan, with its lock entry.

    Attributes:
        address: the stage as DVC names it, such as `plans/tiny/maskalign/dvc.yaml:pretrain@maskalign-teacher`.
        paper: stem of the paper.
        needs: the addresses of all stages whose outputs it reads, directly or through others.
        outputs: path of each output and its md5 in the lock.
        manifests: path of the manifest of its code and its md5 in the lock.
        stale: reasons why the lock entry does not belong to this state of the project; empty if it does.
    """

    address: str
    paper: str
    needs: frozenset[str]
    outputs: dict[str, str | None]
    manifests: dict[str, str | None]
    stale: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """The stage without its arm, such as `pretrain`."""
        return parts(self.address)[1]

    @property
    def arm(self) -> str:
        """The arm or the data set; empty where the stage has none."""
        return parts(self.address)[2]


def read(root: Path, preset: str) -> dict[str, Locked]:
    """All stages of the papers of a preset, by address, in a checkout whose manifests are fresh (`make_manifests`)."""
    from dvc.repo import Repo
    from networkx import descendants

    with Repo(str(root)) as repo:
        graph = repo.index.graph
        stages = {f"{stage.path_in_repo}:{stage.name}": stage for stage in graph if _paper_of(stage, preset)}
        addresses = {stage: address for address, stage in stages.items()}
        made = {_path(repo, out): out for stage in graph for out in stage.outs}
        return {
            address: Locked(
                address=address,
                paper=_paper_of(stage, preset),
                needs=frozenset(addresses[each] for each in descendants(graph, stage) if each in addresses),
                outputs={_path(repo, out): out.hash_info.value for out in stage.outs},
                manifests={_path(repo, dep): dep.hash_info.value for dep in _manifests(repo, stage)},
                stale=list(_stale(repo, stage, made)),
            )
            for address, stage in sorted(stages.items())
        }


def make_manifests(root: Path, preset: str) -> None:
    """Write the manifests of a checkout's code into its `data/sources/<preset>/`."""
    command = [sys.executable, "-m", "stages.sources", "--preset", preset]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=root, env=environment, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise ValueError(f"the manifests of the code cannot be made: {done.stderr.strip()}")


def _paper_of(stage: "PipelineStage", preset: str) -> str:
    """Stem of the paper whose plan has this stage; empty for the stages that all papers share."""
    parts = Path(stage.path_in_repo).parts
    return parts[2] if len(parts) == 4 and parts[:2] == ("plans", preset) else ""


def _path(repo: "Repo", file: "Output") -> str:
    return Path(os.path.relpath(file.fs_path, repo.root_dir)).as_posix()


def _manifests(repo: "Repo", stage: "PipelineStage") -> "list[Dependency]":
    return [dep for dep in stage.deps if _path(repo, dep).startswith("data/sources/")]


def _stale(repo: "Repo", stage: "PipelineStage", made: "dict[str, Output]") -> Iterator[str]:
    """The reasons why a lock entry does not belong to this checkout."""
    if all(not out.hash_info for out in stage.outs):
        yield "it has no entry in the lock"
        return
    if stage.cmd_changed:
        yield "its command changed"
    for dep in stage.deps:
        if hasattr(dep, "read_params"):
            yield from _parameters(repo, dep)
        elif _path(repo, dep).startswith("data/sources/"):
            if _md5(Path(dep.fs_path)) != dep.hash_info.value:
                yield f"its code changed ({_path(repo, dep)})"
        else:
            yield from _input(repo, dep, made)
    for out in stage.outs:
        path = _path(repo, out)
        if not out.hash_info:
            yield f"the lock has no digest of {path}"
        elif not out.use_cache and _md5(Path(out.fs_path)) != out.hash_info.value:
            yield f"{path} is not the file in the lock: its md5 is {_md5(Path(out.fs_path))}"


def _parameters(repo: "Repo", dep: "ParamsDependency") -> Iterator[str]:
    """One line for each setting of a file that differs from the lock."""
    now, then = dep.read_params(), dep.hash_info.value or {}
    for key, here, there in _differences(now, then):
        yield f"{_path(repo, dep)}: {key} is {here}, the lock has {there}"


def _differences(now: Any, then: Any, key: str = "") -> Iterator[tuple[str, str, str]]:
    """(key, value now, value then) of each leaf that differs."""
    if isinstance(now, dict) and isinstance(then, dict):
        for name in dict.fromkeys([*now, *then]):
            yield from _differences(now.get(name, NOTHING), then.get(name, NOTHING), f"{key}.{name}" if key else name)
    elif now != then:
        yield key, str(now), str(then)


def _input(repo: "Repo", dep: "Dependency", made: "dict[str, Output]") -> Iterator[str]:
    """Compare what a stage has read with the outputs in the lock: one output, or a folder with several of them."""
    path = _path(repo, dep)
    if path in made:
        if dep.hash_info != made[path].hash_info:
            yield f"it was run with another {path}: md5 {dep.hash_info.value}, now {made[path].hash_info.value}"
        return
    inside = [out for name, out in made.items() if name.startswith(f"{path}/")]
    files, size = (sum(getattr(out.meta, what) or 0 for out in inside) for what in ("nfiles", "size"))
    if (dep.meta.nfiles, dep.meta.size) != (files, size):  # the digest of the folder cannot be computed from theirs
        yield (
            f"it was run with another {path}: {dep.meta.nfiles} files of {dep.meta.size} bytes together, "
            f"now {files} of {size}; remove from it what belongs to no arm of the plan"
        )


def _md5(path: Path) -> str | None:
    """Digest of a file as DVC computes it; None if there is no such file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
