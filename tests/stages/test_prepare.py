import inspect
import sys

import pytest
from hydra.utils import get_method

from lightning_modules.datasets import storage
from lightning_modules.datasets.download import MIRROR_VARIABLE
from lightning_modules.files import ROOT
from stages import prepare
from stages.composing import compose

NAMES = sorted(path.name for path in (ROOT / "conf/dataset").iterdir())


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the stage as if the project lay in an empty folder."""
    monkeypatch.setattr(prepare, "ROOT", tmp_path)
    monkeypatch.setattr(prepare, "scratch", lambda: tmp_path / ".scratch")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)

    def start(name):
        monkeypatch.setattr(sys, "argv", ["prepare", name])
        prepare.main()

    return start


@pytest.mark.parametrize("name", NAMES)
def test_presets_have_the_same_keys_and_only_known_ones(name):
    tiny, paper = (compose(preset, dataset=name)["dataset"] for preset in ("tiny", "paper"))
    assert tiny.keys() == paper.keys()
    parameters = inspect.signature(get_method(tiny.pop("_target_"))).parameters
    assert ["folder", *tiny] == list(parameters)


def test_prepares_into_the_folder_of_the_preset_and_removes_an_earlier_notice(run, tmp_path):
    notice = tmp_path / ".scratch/unavailable/digits-tiny.txt"
    notice.parent.mkdir(parents=True)
    notice.touch()
    run("digits")
    assert storage.card(tmp_path / "data/datasets/digits/tiny")["splits"] == {"all": 1797}
    assert not notice.exists()


def test_unavailable_data_is_one_message_a_notice_and_exit_code_1(run, tmp_path):
    with pytest.raises(SystemExit, match="error: imagenet: val could not be had"):
        run("imagenet")
    assert (
        (tmp_path / ".scratch/unavailable/imagenet-tiny.txt").read_text().startswith("imagenet: val could not be had")
    )
    assert not list((tmp_path / "data/datasets/imagenet").iterdir())


def test_other_errors_are_not_hidden(run, monkeypatch):
    def fail(*_):
        raise ValueError("a defect")

    monkeypatch.setattr("lightning_modules.datasets.digits.prepare", fail)
    with pytest.raises(ValueError, match="a defect"):
        run("digits")
