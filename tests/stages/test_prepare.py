import inspect
from pathlib import Path

import pytest
from hydra.utils import get_method

from lightning_modules.datasets import storage
from lightning_modules.datasets.download import MIRROR_VARIABLE
from stages import prepare

NAMES = sorted(path.name for path in (prepare.CONF / "dataset").iterdir())


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Stages work in the folder they are called in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)


@pytest.mark.parametrize("name", NAMES)
def test_presets_have_the_same_keys_and_only_known_ones(name):
    tiny, paper = (prepare.compose_dataset(name, preset) for preset in ("tiny", "paper"))
    assert tiny.keys() == paper.keys()
    parameters = inspect.signature(get_method(tiny.pop("_target_"))).parameters
    assert ["folder", *tiny] == list(parameters)


def test_prepares_into_the_folder_of_the_preset():
    assert prepare.main(["digits", "--preset", "paper"]) == 0
    assert storage.card(Path("data/datasets/digits/paper"))["splits"] == {"all": 1797}
    assert not Path(".scratch").exists()


def test_preset_comes_from_the_plan():
    Path("params.yaml").write_text("preset: tiny\n")
    assert prepare.main(["digits"]) == 0
    assert Path("data/datasets/digits/tiny/card.json").exists()


def test_unavailable_data_is_one_message_a_notice_and_exit_code_1(capsys):
    assert prepare.main(["imagenet", "--preset", "tiny"]) == 1
    notice = Path(".scratch/unavailable/imagenet-tiny.txt")
    captured = capsys.readouterr()
    assert notice.read_text() == captured.err
    assert captured.err.startswith("imagenet: val could not be had")
    assert captured.out == ""
    assert not list(Path("data/datasets/imagenet").iterdir())


def test_success_removes_an_earlier_notice():
    notice = Path(".scratch/unavailable/digits-tiny.txt")
    notice.parent.mkdir(parents=True)
    notice.touch()
    assert prepare.main(["digits", "--preset", "tiny"]) == 0
    assert not notice.exists()


def test_other_errors_are_not_hidden(monkeypatch):
    def fail(*_):
        raise ValueError("a defect")

    monkeypatch.setattr("lightning_modules.datasets.digits.prepare", fail)
    with pytest.raises(ValueError, match="a defect"):
        prepare.main(["digits", "--preset", "tiny"])
