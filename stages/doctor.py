"""Check this environment and say what is wrong with it; exit code 1 if something must be fixed."""

import importlib.metadata
import importlib.util
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator

from lightning_modules.files import ROOT
from lightning_modules.processes import cores

BREAKERS = ("torchvision", "timm", "open_clip_torch", "lpips", "torch-fidelity")
Finding = tuple[bool, str]


def python() -> Iterator[Finding]:
    """The interpreter's version."""
    yield sys.version_info >= (3, 11), f"Python {platform.python_version()} (3.11 or newer is needed)"


def tools() -> Iterator[Finding]:
    """Programs that the pipeline calls."""
    for name, why in (("git", "DVC and the records of runs need it"), ("make", "the README's commands need it")):
        yield shutil.which(name) is not None, f"{name}: {shutil.which(name) or f'not found; {why}: install it'}"
    yield repository()


def repository() -> Finding:
    """Whether this folder is a git repository that git agrees to use."""
    if not (ROOT / ".git").exists():
        return False, (
            "not a git repository, as after the download of a ZIP file: use `git clone`, because DVC works only inside "
            "one; or make it one here: `git init && git add -A && git commit -m start`"
        )
    command = ["git", "rev-parse", "--git-dir"]
    try:
        asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return False, "git was not found, and DVC needs it: install it"
    if asked.returncode == 0:
        return True, "a git repository"
    if "dubious ownership" in asked.stderr:
        return False, (
            f"git refuses {ROOT}, because it belongs to another user: run `git config --global --add safe.directory "
            f"{shlex.quote(str(ROOT))}`, or clone it as this user"
        )
    way_out = "clone it again"
    if (ROOT / ".git").is_file():
        way_out = f"if it was moved, run `git worktree repair {shlex.quote(str(ROOT))}` in its repository"
    return False, f"git does not work here: {' '.join(asked.stderr.split())}: {way_out}"


def need_repository() -> None:
    """Go on only in a repository.

    Raises:
        ValueError: this folder is none that git agrees to use; the message says what to do.
    """
    usable, reason = repository()
    if not usable:
        raise ValueError(reason)


def versions() -> Iterator[Finding]:
    """Installed versions against requirements.lock."""
    wrong = []
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if pin := re.fullmatch(r"([\w.-]+)==([^;\s]+).*", line):
            try:
                found = importlib.metadata.version(pin[1])
            except importlib.metadata.PackageNotFoundError:
                found = "missing"
            if found.split("+")[0] != pin[2]:
                wrong.append(f"{pin[1]} is {found}, the lock says {pin[2]}")
    yield not wrong, "; ".join(wrong) + ": run `make setup`" if wrong else "every package has its locked version"


def torchvision() -> Iterator[Finding]:
    """Packages that break Lightning, torchmetrics and transformers if they do not fit the installed torch."""
    for name in BREAKERS:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        works = name == "torchvision" and _imports("torchvision")
        yield (
            works,
            f"{name} {version} is installed"
            + (
                ""
                if works
                else ": it does not work with this torch, and Lightning, torchmetrics and transformers fail because "
                f"they import it when it is installed. Run `{sys.executable} -m pip uninstall -y {name}`"
            ),
        )


def _imports(module: str) -> bool:
    return subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0


def accelerator() -> Iterator[Finding]:
    """The devices that torch can use."""
    if importlib.util.find_spec("torch") is None:
        yield False, "torch is not installed: run `make setup`"
        return
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        yield True, f"GPU: {names}. Use it with REPRISE_TRAINER=gpu"
    else:
        yield True, f"torch {torch.__version__} finds no GPU: the preset tiny needs none, the preset paper does"
    yield True, f"{cores()} CPU cores; `REPRISE_WORKERS` sets how many seeds train side by side"


def main() -> None:
    """Print one line for each finding."""
    findings = [finding for check in (python, tools, versions, torchvision, accelerator) for finding in check()]
    for fine, text in findings:
        print(f"{'ok   ' if fine else 'FIX  '} {text}")
    sys.exit(not all(fine for fine, _ in findings))


if __name__ == "__main__":
    main()
