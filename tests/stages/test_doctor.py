"""The doctor names what is wrong and the command that mends it."""

import importlib.metadata
import subprocess

from stages import doctor


def test_a_torchvision_that_cannot_be_imported_is_named(monkeypatch):
    def version(name):
        if name == "torchvision":
            return "0.28.0"
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(doctor, "_imports", lambda module: False)
    ((fine, text),) = doctor.torchvision()
    assert not fine and "torchvision 0.28.0" in text and "uninstall -y torchvision" in text


def test_a_version_off_the_lock_is_named(monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1" if name == "einops" else real(name))
    ((fine, text),) = doctor.versions()
    assert not fine and "einops is 0.1, the lock says" in text and "make setup" in text


def test_missing_git_is_named(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None if name == "git" else f"/usr/bin/{name}")
    findings = list(doctor.tools())
    assert any(not fine and text.startswith("git: not found") for fine, text in findings)


def test_a_zip_download_a_folder_of_another_user_and_a_broken_repository_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    assert "use `git clone`" in doctor.repository()[1] and "git init" in doctor.repository()[1]
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    assert doctor.repository() == (True, "a git repository")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    fine, text = doctor.repository()
    assert not fine and f"git config --global --add safe.directory {tmp_path}" in text
    monkeypatch.delenv("GIT_TEST_ASSUME_DIFFERENT_OWNER")
    (tmp_path / ".git/HEAD").unlink()
    fine, text = doctor.repository()
    assert not fine and "git does not work here: fatal: not a git repository" in text and "clone it again" in text


def test_a_worktree_that_was_moved_is_told_and_the_command_mends_it(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path / "clone", *arguments], check=True, capture_output=True)

    (tmp_path / "clone").mkdir()
    git("init", "-q")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "start")
    git("worktree", "add", "../tree")
    (tmp_path / "clone").rename(tmp_path / "elsewhere")
    monkeypatch.setattr(doctor, "ROOT", tmp_path / "tree")
    fine, text = doctor.repository()
    assert not fine and text.endswith(f"if it was moved, run `git worktree repair {tmp_path}/tree` in its repository")
    command = text.rpartition("run `")[2].partition("`")[0].split()
    subprocess.run(command, cwd=tmp_path / "elsewhere", check=True, capture_output=True)
    assert doctor.repository() == (True, "a git repository")


def test_the_accelerator_line_says_what_to_do():
    assert any("GPU" in text for _, text in doctor.accelerator())
