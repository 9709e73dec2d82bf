"""What the guide of VideoPoet tells a user to type has the results that it speaks of."""

from lightning_modules.datasets.video.hearing import read_sound
from lightning_modules.datasets.video.showing import read_shown
from tests.typed import typed
from tests.videopoet.test_director import director


def frames(path):
    return len(read_shown(path, range, lambda picture: picture).frames)


def test_commands_and_python_of_the_guide_have_results(tmp_path, monkeypatch, capsys):
    typed("videopoet", director, tmp_path, monkeypatch)
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")}
    assert {"films/0-first-sound-film.mp4", "films/0-first-sound-sound.wav", "films/0-first-longer-film.mp4"} <= made
    assert {"films/1-my-picture-film.mp4", "staged/0-my-scenes-0-film.mp4", "wished/0-my-wishes-0-film.mp4"} <= made
    assert "staged/1-1-my-picture-sound-film.mp4" in made
    assert frames(tmp_path / "films/0-first-sound-film.mp4") == 6  # 8 frames, 10 a second, are 6 of 8 a second
    assert len(read_sound(tmp_path / "films/0-first-sound-sound.wav", 0.0, 6 * 512, 4096)) == 6 * 512
    assert frames(tmp_path / "longer.mp4") == frames(tmp_path / "films/0-first-longer-film.mp4") == 6 + 2 * 4
    told = capsys.readouterr().out
    assert "(3072,) 4096 (14, 8, 8, 3)" in told and "LlamaForCausalLM" in told
    assert "torch.Size([1, 3, 9, 8, 8]) torch.Size([1, 4608]) torch.Size([1, 3, 25, 8, 8])" in told
