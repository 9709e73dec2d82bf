"""What holds for every test: one thread, run records that stay on this disk, `--paper` and `--minutes`."""

import functools
import gc
import importlib.util
import math
import os
import shutil
import socket
import stat
import subprocess
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.checking import check_annotations

check_annotations("lightning_modules")  # before any test imports a module of it

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: more threads only wait for each other here
os.environ.setdefault("REPRISE_TRACKING", "local")  # no test starts a mirror unless it means to
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


ROOT = Path(__file__).parents[1]
SAMPLED = pytest.StashKey[dict[str, Any] | None]()


def pytest_addoption(parser):
    parser.addoption(
        "--paper", nargs="+", metavar="STEM", default=[],
        help="only the tests of these papers: their folders, and their cases of the tests that all papers share",
    )  # fmt: skip
    parser.addoption(
        "--minutes", type=float, metavar="N",
        help="of the tests that are marked `sampled`, only the cases of some papers: those that changed since their "
        "last release, then others at random, which are expected to take so many minutes of one core",
    )  # fmt: skip


STEMS = sorted(path.parent.name for path in ROOT.glob("lightning_modules/*/facts.yaml"))


def pytest_configure(config):
    if unknown := [stem for stem in config.getoption("paper") if stem not in STEMS]:
        raise pytest.UsageError(f"--paper: no paper {', '.join(unknown)}; there are {', '.join(STEMS)}")
    minutes = config.getoption("minutes")
    if minutes is not None and not 0 <= minutes < math.inf:
        raise pytest.UsageError(f"--minutes is {minutes}, expected a number of minutes from 0 on, such as 10")
    if hasattr(config, "workerinput"):
        config.stash[SAMPLED] = config.workerinput["sampled"]
    else:
        try:
            config.stash[SAMPLED] = None if minutes is None else sampled(minutes, config.getoption("paper"))
        except ValueError as error:  # of the plan, or there is no repository
            raise pytest.UsageError(str(error)) from None


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """The choice is made once, and told to each worker of pytest-xdist."""
    node.workerinput["sampled"] = node.config.stash[SAMPLED]


def pytest_sessionstart(session):
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if terminal and (found := session.config.stash[SAMPLED]):
        terminal.write_line(found["told"])


def sampled(minutes: float, papers: Sequence[str]) -> dict[str, Any]:
    """The papers whose cases of the tests `sampled` are run, and the line that says so."""
    from stages import release
    from stages.auditing.checkout import head
    from stages.doctor import need_repository
    from stages.plan import load_plan
    from stages.rehearsal import drawing

    need_repository()
    plan, commit = load_plan("paper"), head(ROOT)
    papers = [paper for paper in plan.papers if paper in papers or not papers]
    if not papers:
        return {"papers": [], "told": "rehearsals: none, for these papers have no plan of the preset `paper`"}
    changed = set(release.rehearsals_changed(ROOT, drawing.digests(plan))) & {*papers}
    found, seconds = drawing.drawn(plan, papers, changed, commit, minutes)
    left = sorted({*papers} - {*found})
    told = f"rehearsals of commit {commit[:12]} in {minutes:g} minutes: {', '.join(found)} ({seconds:.0f} s expected); "
    told += f"changed since the last release: {', '.join(sorted(changed)) or 'none'}; "
    return {"papers": found, "told": f"{told}left out: {', '.join(left) or 'none'}"}


def pytest_ignore_collect(collection_path, config):
    """Import no tests of other papers."""
    papers, path = config.getoption("paper"), collection_path
    return True if papers and path.parent == ROOT / "tests" and path.name in {*STEMS} - {*papers} else None


# Tests that share nothing with others of their file: any worker may take a case
ALONE = (
    "test_every_paper_can_be_rehearsed_without_data_gpu_and_network",
    "test_what_a_guide_tells_a_user_to_type_works",
)
# Files whose tests use `finished`: one worker takes them all, and makes it once
FINISHED = ("tests/stages/test_pages.py", "tests/test_audit.py", "tests/test_notebooks.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `--dist loadfile`, the tests of a file go to one worker, but for `ALONE` and `FINISHED`.

    The marks `xdist_group` would say this, but pytest-xdist 3.8 ignores them with pytest 9.2, without a word.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return Groups(config, log) if config.getvalue("dist") == "loadfile" else None


def group_of(nodeid: str) -> str:
    """The tests with the same group go to one worker."""
    file, _, name = nodeid.partition("::")
    if name.partition("[")[0] in ALONE:
        return nodeid
    return "finished" if file in FINISHED else file


@pytest.hookimpl(wrapper=True)
def pytest_collection(session):
    """What is imported and collected stays until the end: the garbage collector need not go through it again."""
    gc.disable()
    result = yield
    gc.enable()
    gc.freeze()
    return result


def pytest_collection_modifyitems(config, items):
    papers, sample = config.getoption("paper"), config.stash[SAMPLED]
    kept = [item for item in items if not papers or set(papers) & papers_of(item)]
    if sample:
        kept = [
            item for item in kept if not item.get_closest_marker("sampled") or papers_of(item) & {*sample["papers"]}
        ]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def papers_of(item) -> set[str]:
    """The papers that a test belongs to: by its folder, or by its parameter `stem`, `arm` or `system`."""
    found = {item.path.relative_to(ROOT / "tests").parts[0]}
    for name, value in item.callspec.params.items() if hasattr(item, "callspec") else ():
        if name == "stem":
            found.add(value)
        elif name in ("arm", "system"):
            found |= owners().get((name, value), set())
    return found


@functools.cache
def owners() -> dict[tuple[str, str], set[str]]:
    """The papers that have an arm of this name, or use a system of this name."""
    from stages.plan import PRESETS, load_plan

    found: dict[tuple[str, str], set[str]] = {}
    for plan in map(load_plan, PRESETS):
        for stage in ("pretrain", "finetune", "evaluate", "sweep"):
            for row in getattr(plan, stage).values():
                found.setdefault(("arm", row.arm), set()).add(row.paper)
                found.setdefault(("system", row.system), set()).add(row.paper)
    return found


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder that the workers of one run of pytest have in common."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def prepared(shared_folder):
    """`prepared(name)` is the folder of a data set of the tiny preset, prepared once for all workers. Read only.

    `storage.read` decodes and verifies a split of such a folder once for all tests. Each gets arrays of its own:
    numbers are mapped from files, and a page of memory is copied when a test writes to it. Equal sentences are
    tokenised once.
    """
    import numpy as np
    from filelock import FileLock
    from hydra.utils import get_method

    from lightning_modules.datasets import storage
    from lightning_modules.datasets.tokenizers import TextTokenizer
    from stages.composing import compose

    home, decoded, read = shared_folder / "prepared", shared_folder / "decoded", storage.read
    home.mkdir(exist_ok=True)
    decoded.mkdir(exist_ok=True)

    def mapped(folder: Path, split: str):
        if Path(folder).parent != home:
            return read(folder, split)
        place = decoded / Path(folder).name / split
        with FileLock(f"{decoded}/{Path(folder).name}.{split}.lock"):
            if not place.exists():
                written = place.with_name(f"{split}.written")
                written.mkdir(parents=True)
                for number, (name, column) in enumerate(read(folder, split).items()):
                    np.save(written / f"{number:02d}.{name}.npy", column)
                written.rename(place)
        return {path.name[3:-4]: loaded(path) for path in sorted(place.iterdir())}

    def loaded(path: Path):
        try:
            return np.asarray(np.load(path, mmap_mode="c"))
        except ValueError:  # objects, such as texts and lists, cannot be mapped
            return np.load(path, allow_pickle=True)

    call, known = TextTokenizer.__call__, {}

    def tokenised(self, sentences, length: int):
        key = self.backend.to_str(), length, tuple(sentences)
        if key not in known:
            known[key] = call(self, sentences, length)
        return tuple(x.copy() for x in known[key])

    @functools.cache
    def prepare(name: str) -> Path:
        folder = home / name
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                config = compose("tiny", dataset=name)["dataset"]
                get_method(config.pop("_target_"))(folder, **config)
        return folder

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(storage, "read", mapped)
        patched.setattr(TextTokenizer, "__call__", tokenised)
        yield prepare


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A small project whose pipeline has run, and whose runs are in its own `mlflow.db`. Read, never changed."""
    from tests.pipeline import Copy

    copy = Copy(tmp_path_factory.mktemp("finished"), seeds=range(5))  # as many as the claims ask for
    copy.environment["REPRISE_TRACKING"] = "local"  # sent below, at once
    copy.dvc("repro")
    copy.python("-m", "lightning_modules.tracking.mirror", "--flush")
    copy.dvc("repro", "--force", "--single-item", "report")  # now with links to the runs
    return copy


@pytest.fixture
def postgresql(postgresql_server):
    """The URL of an empty PostgreSQL database on loopback: Optuna and MLflow cannot share one (`alembic_version`)."""
    import psycopg

    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(f"{postgresql_server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{postgresql_server}/{name}"


@pytest.fixture(scope="session")
def postgresql_server():
    """The URL of a PostgreSQL server of the tests' own, on loopback."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [None]
    needed("postgresql", programs[-1], "psycopg")
    folder, run = server_folder("postgres")
    port = free_port()
    initdb, pg_ctl = (str(programs[-1] / name) for name in ("initdb", "pg_ctl"))
    options = f"-p {port} -h 127.0.0.1 -k {folder} -F"
    run(initdb, "-D", f"{folder}/data", *"-A trust -U reprise --no-sync --encoding UTF8 --locale C".split())
    run(pg_ctl, "-D", str(folder / "data"), "-o", options, "-l", str(folder / "log"), "-w", "start")
    yield f"postgresql://reprise@127.0.0.1:{port}"
    run(pg_ctl, "-D", str(folder / "data"), "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def mariadb():
    """The URL of an empty database on a MariaDB server of the tests' own, on loopback."""
    program = shutil.which("mariadbd")
    needed("mariadb-server", program, "pymysql")
    folder, run = server_folder("mysql")
    port, client = free_port(), ["mariadb", "--no-defaults", f"--socket={folder}/socket"]
    run("mariadb-install-db", "--no-defaults", f"--datadir={folder}/data", "--skip-test-db")
    options = ["--bind-address=127.0.0.1", f"--port={port}", f"--socket={folder}/socket", f"--pid-file={folder}/pid"]
    run("bash", "-c", '"$0" "$@" 2>log &', program, "--no-defaults", f"--datadir={folder}/data", *options)
    deadline = time.monotonic() + 60
    while subprocess.run([*client, "-e", "SELECT 1"], capture_output=True).returncode:
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.2)
    run(
        *client, "-e", "CREATE DATABASE tests; CREATE USER reprise@'127.0.0.1'; GRANT ALL ON *.* TO reprise@'127.0.0.1'"
    )
    yield f"mysql+pymysql://reprise@127.0.0.1:{port}/tests"
    run("mariadb-admin", "--no-defaults", f"--socket={folder}/socket", "shutdown")
    shutil.rmtree(folder)


def needed(package: str, program: object, driver: str) -> None:
    """Skip what needs a database server that is not installed or cannot run here; in CI everything is there."""
    for missing, why in (
        (program is None, f"{package} is not installed: apt-get install {package}"),
        (importlib.util.find_spec(driver) is None, f"{driver} is not installed: make setup"),
        (
            os.geteuid() == 0 and not os.stat(os.devnull).st_mode & stat.S_IWOTH,  # the server has a user of its own
            f"other users cannot write to {os.devnull}: chmod a+w {os.devnull}",
        ),
    ):
        if missing:
            assert "CI" not in os.environ, why
            pytest.skip(why)


def server_folder(user: str):
    """A folder for a database server, and what runs a command there: as `user` if need be, for servers refuse root.

    When a command fails, the message has what it printed, and the end of the server's log.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"reprise-{user}-"))  # the path of a socket has room for 107 bytes
    become = []
    if os.geteuid() == 0:
        shutil.chown(folder, user)
        become = ["runuser", "-u", user, "--"]

    def run(*command):
        environment = {"PATH": os.environ["PATH"]}  # a test that looks for processes of its own must not find this one
        with tempfile.TemporaryFile() as output:  # no pipe, which a server that is started here would keep open
            done = subprocess.run(
                [*become, *command], cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
            )
            output.seek(0)
            said, log = output.read().decode(errors="replace"), folder / "log"
        said += log.read_text(errors="replace")[-4000:] if log.is_file() else ""
        if done.returncode:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}\n{said}")

    return folder, run


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
