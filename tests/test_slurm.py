"""The job script of the README under SLURM, on a cluster of this machine alone."""

import getpass
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from lightning_modules.files import ROOT
from tests.conftest import free_port
from tests.pipeline import Copy

ARM = "committees-digits"


@pytest.fixture
def slurm(tmp_path):
    """The environment in which SLURM's commands find a cluster of one node."""
    if missing := [name for name in ("slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]:
        pytest.skip(f"SLURM is not installed here ({missing[0]} is missing): apt-get install slurm-wlm")
    place = Path(shutil.which("slurmctld")).resolve().parents[1]
    (plugins,) = place.glob("lib/*/slurm-wlm")
    host, user = socket.gethostname(), getpass.getuser()
    (tmp_path / "slurm.conf").write_text(
        f"""ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
AuthInfo=cred_expire=3
CredType=cred/none
PluginDir={plugins}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/linear
MpiDefault=none
StateSaveLocation={tmp_path}/state
SlurmdSpoolDir={tmp_path}/spool
SlurmctldPidFile={tmp_path}/slurmctld.pid
SlurmdPidFile={tmp_path}/slurmd.pid
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""
    )
    for name in ("state", "spool"):
        (tmp_path / name).mkdir()
    environment = {**os.environ, "SLURM_CONF": str(tmp_path / "slurm.conf")}
    stepd = next(path for path in place.glob("sbin/slurmstepd*"))
    servers = []
    for command in (["slurmctld", "-D"], ["slurmd", "-D", "-d", str(stepd)]):
        with (tmp_path / f"{command[0]}.log").open("wb") as log:
            servers.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=tmp_path))
    yield environment
    for server in servers[::-1]:
        server.terminate()
        server.wait(30)


def until(what, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def script() -> str:
    """The job script of the README, for one CPU and the tiny preset."""
    text = re.search(r"```bash\n(#!/bin/bash\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    for said, here in (
        ("--ntasks-per-node=4 --gpus-per-node=4", "--ntasks-per-node=1"),
        ("REPRISE_TRAINER=slurm", "REPRISE_TRAINER=cpu"),
        ("maskalign --preset paper", ARM),
        (".venv/bin/python", "python"),
    ):
        assert said in text
        text = text.replace(said, here)
    return text


@pytest.mark.slow
def test_a_job_that_slurm_warns_is_queued_again_and_ends_with_the_bytes_of_an_unbroken_one(tmp_path, slurm):
    copy = Copy(tmp_path / "project", seeds=[0], epochs=10)  # of 20 steps
    copy.slow_down(0.05)
    copy.environment |= {"SLURM_CONF": slurm["SLURM_CONF"]}
    for stage in (["sources"], ["prepare", "digits"], ["pretrain", ARM]):
        copy.python("-m", f"stages.{stage[0]}", *stage[1:])
    out, log = copy.folder / "data/runs/tiny" / ARM / "pretrain/seed-0", copy.folder / "train.log"
    unbroken = {path.name: path.read_bytes() for path in out.iterdir()}
    for folder in (copy.folder / "data/runs", copy.folder / ".scratch/seeds"):
        shutil.rmtree(folder)

    until(lambda: "idle" in copy.run("sinfo", check=False).stdout)
    (copy.folder / "train.sh").write_text(script())
    progress = copy.folder / "progress"
    job = copy.run("sbatch", "train.sh", REPRISE_PROGRESS=str(progress)).stdout.split()[-1]
    until(progress.exists)
    copy.run("scancel", "--signal=USR1", job)  # to the steps of the job, as `--signal` does it
    until(lambda: log.is_file() and "stopped by SIGUSR1: the same command goes on from here" in log.read_text())
    assert not out.exists()
    until(lambda: "JobState=COMPLETED" in copy.run("scontrol", "show", "job", job).stdout)
    assert "Restarts=1" in copy.run("scontrol", "show", "job", job).stdout
    (stopped,), (resumed,) = (
        re.findall(rf"{what} at step (\d+)", log.read_text()) for what in ("stopping", "resuming")
    )
    assert stopped == resumed
    assert {path.name: path.read_bytes() for path in out.iterdir()} == unbroken
