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
def test_keys_are_known_in_their_order_and_the_same_in_both_presets(name):
    given = [compose(path.stem, dataset=name)["dataset"] for path in (ROOT / "conf/dataset" / name).iterdir()]
    assert all(config.keys() == given[0].keys() for config in given)
    parameters = inspect.signature(get_method(given[0].pop("_target_"))).parameters
    known = [key for key, value in parameters.items() if key in given[0] or value.default is value.empty]
    assert ["folder", *given[0]] == known


def test_no_data_set_is_described_twice():
    """One whose presets are the same has the file of the preset that uses it."""
    for name in NAMES:
        files = [path.read_text() for path in (ROOT / "conf/dataset" / name).iterdir()]
        assert len(set(files)) == len(files), name


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
