"""Pictures changed by texts: what is trained, what a text moves, and what its pictures are judged by."""

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_modules import settings
from lightning_modules.hd_vila.editor import Editor
from lightning_modules.hd_vila.manipulation import Manipulation, enlarged
from lightning_modules.hd_vila.manipulation_evaluation import BANDED, CHECKERED, NONE, STRIPED, measured, patterns
from tests.hd_vila.test_module import OPTIONS, data, folder, module  # noqa: F401  (fixture)

GUIDE = {**OPTIONS, "streams": "high", "frames": 1, "timesformer": {}, "source": "caption", "tokenizer": "world"}
ENCODER = {key: value for key, value in OPTIONS["resnet"].items() if key != "hub"} | {"layers": [1, 1, 1], "pool": 2}
GENERATOR = {"size": 32, "style_dim": 8, "widths": [8, 4], "official": None}
WEIGHTS = {"text_weight": 0.1, "look_weight": 1.0, "keep_weight": 1.0, "move_weight": 0.01}


def manipulation(**options) -> Manipulation:
    torch.manual_seed(0)
    given = {"guide": GUIDE, "generator": GENERATOR, "encoder": ENCODER, "hidden": 16, "sees_coarse": True}
    made = Manipulation(**given | WEIGHTS | options)
    torch.nn.init.normal_(made.mapper.move.weight, std=0.1)
    return made


@pytest.fixture
def batch(folder):  # noqa: F811
    return next(iter(data(folder, frames=1).train_dataloader()))


def test_hd_vila_stays_as_it_was_and_all_else_is_trained(batch):
    made = manipulation()
    sum(made.losses(batch).values()).backward()
    assert not made.train().guide.training
    assert all(x.grad is None for x in made.guide.parameters())
    assert not [name for name, x in made.named_parameters() if x.requires_grad and x.grad is None]


def test_a_trained_generator_stays_as_it_is(batch, tmp_path):
    other = manipulation().generator
    torch.save({"g_ema": other.state_dict()}, tmp_path / "stylegan.pt")
    options = {"size": 32, "style_dim": 8, "widths": [8, 4], "official": str(tmp_path / "stylegan.pt")}
    made = manipulation(generator=options, sees_coarse=False)
    sum(made.losses(batch).values()).backward()
    assert all(torch.equal(x, other.state_dict()[name]) for name, x in made.generator.state_dict().items())
    assert all(x.grad is None for x in made.generator.parameters())
    assert made.mapper.move.weight.grad.abs().sum() > 0


def test_each_row_is_asked_for_the_text_of_another(batch, monkeypatch):
    """With a guide for which every picture is what its text says, the contrast is lost in every row."""
    made = manipulation()
    texts = torch.eye(12, GUIDE["bert"]["sizes"]["hidden_size"])
    monkeypatch.setattr(made, "texts", lambda batch: texts)
    read = []
    drawn = made.drawn
    monkeypatch.setattr(
        made, "drawn", lambda pictures, asked, *rest: read.append(asked) or drawn(pictures, asked, *rest)
    )
    losses = made.losses(batch)
    rows = read[0].argmax(1)
    assert sorted(rows.tolist()) == list(range(12)) and (rows != torch.arange(12)).all()
    own = manipulation(task="enlarge")
    monkeypatch.setattr(own, "texts", lambda batch: texts)
    monkeypatch.setattr(
        own, "drawn", lambda pictures, asked, *rest: read.append(asked) or drawn(pictures, asked, *rest)
    )
    assert losses.keys() - own.losses(batch).keys() == {"keep"}
    assert torch.equal(read[1], texts)


def test_a_text_moves_the_picture_unless_it_is_not_read(batch):
    pictures, texts = manipulation().pictures(batch), manipulation().texts(batch)
    with torch.no_grad():
        for reads, same in ((True, False), (False, True)):
            made = manipulation(reads_text=reads)
            first, second = (made.drawn(pictures, each)[0] for each in (texts, texts.roll(1, 0)))
            assert torch.equal(first, second) == same


def test_an_enlarged_picture_is_made_from_a_quarter_of_the_sides(batch):
    made = manipulation(task="enlarge").eval()
    pictures, texts = made.pictures(batch), made.texts(batch)
    coarse = pictures.unflatten(2, (8, 4)).unflatten(4, (8, 4)).mean((3, 5))
    torch.testing.assert_close(enlarged(pictures)[:, :, 1::4, 2::4], coarse)
    within = pictures.unflatten(2, (8, 4)).unflatten(4, (8, 4)).flip(3, 5).flatten(4, 5).flatten(2, 3)
    with torch.no_grad():
        first, second = (made.drawn(enlarged(x), texts)[0] for x in (pictures, within))
    torch.testing.assert_close(first, second)


def test_pixels_come_back_from_normalised_pictures(batch):
    made = manipulation()
    video = batch["video"][:, :, 0]
    assert torch.equal(made.stored(made.pictures(batch)), video.permute(0, 2, 3, 1))
    assert made.pictures({"video": torch.zeros(1, 3, 1, 32, 64, dtype=torch.uint8)}).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("axes", [(STRIPED, 1, 0), (BANDED, 0, 1), (CHECKERED, 1, 1), (NONE, 0, 0)])
@pytest.mark.parametrize("shift", range(4))
def test_a_pattern_is_read_off_the_pixels_wherever_it_begins(axes, shift):
    pattern, across, down = axes
    places = (np.arange(32) + shift) // 2 % 2
    dark = (across * places)[None] ^ (down * places)[:, None]
    picture = np.zeros((1, 32, 32, 3), np.uint8)
    picture[0, 8:22, 9:23, 0] = (220 - 130 * dark)[8:22, 9:23]
    assert patterns(picture) == [pattern]


def test_the_rule_is_right_on_real_frames(folder):  # noqa: F811
    stored = data(folder).stored["train"]
    np.testing.assert_array_equal(patterns(stored["video"][:, 1]), stored["label"] // 4 % 3)


def test_what_is_measured_of_perfect_and_of_unchanged_pictures():
    places = np.arange(32) // 2 % 2
    across, down = (np.broadcast_to(x, (32, 32)) for x in (places[None], places[:, None]))
    looks = 100 + 80 * np.stack([across, across ^ down, down])
    frames = np.repeat(looks[..., None], 3, -1).astype(np.uint8)
    arrays = {
        "frames": frames,
        "changed": frames[[1, 2, 0]],
        "labels": 4 * np.arange(3),
        "row": np.array([1, 2, 0]),
        "before": np.zeros(3),
        "after": np.array([1.0, 1.0, -1.0]),
    }
    found = measured(arrays, 4)
    assert found["pattern_percent"] == 100 and found["pattern_before_percent"] == 0 and found["kept_error"] == 0
    assert found["nearer_percent"] == pytest.approx(200 / 3) and found["judge_percent"] == 100
    unchanged = measured({**arrays, "changed": frames + np.uint8(4)}, 4)
    assert unchanged["pattern_percent"] == 0 and unchanged["kept_error"] == 4
    assert unchanged["psnr"] == pytest.approx(20 * np.log10(255 / 4))
    own = measured({**arrays, "changed": frames, "row": np.arange(3)}, 4)
    assert own["pattern_percent"] == 100
    third = pytest.approx(100 / 3)
    for drawn, follows, by_chance in (
        (frames[[1, 2, 0]], 100, third),
        (frames[[0, 0, 0]], third, third),  # one pattern, whatever the text
        (np.zeros_like(frames), 0, 0),
    ):
        found = measured({**arrays, "changed": drawn}, 4)
        assert (found["follows_percent"], found["follows_by_chance_percent"]) == (follows, by_chance)


def test_the_editor_changes_files(folder, tmp_path):  # noqa: F811
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "mine.png")
    (tmp_path / "texts.txt").write_text("a red banded circle moving left\na red striped circle moving up\n")
    editor = Editor(manipulation(), {"data": {"tokenizer": None, "text_length": 8}})
    assert editor.begin([tmp_path / "mine.png", tmp_path / "texts.txt"]) == [tmp_path / "mine.png"]
    first, second = editor.answer(tmp_path / "mine.png")
    assert first["sentence"] == "a red banded circle moving left" and first["changed"].size == (32, 32)
    assert first["changed"] != second["changed"] and -1 <= first["after"] <= 1
    assert (first["row"], second["row"]) == (0, 1)  # the command names files after it
    assert len(list(editor.answer(tmp_path / "mine.png", top=1))) == 2  # no ranking
    with pytest.raises(ValueError, match=r"sentences has 'zebra', of which the model knows no word"):
        list(editor.change(tmp_path / "mine.png", ["a red circle", "zebra"]))
    with pytest.raises(ValueError, match=r"nothing\.png cannot be read as a picture"):
        list(editor.change(tmp_path / "nothing.png", ["a"]))
    with pytest.raises(ValueError, match="sentences is 'a red circle', expected a list"):
        list(editor.change(tmp_path / "mine.png", "a red circle"))


def test_what_cannot_be_is_refused(folder):  # noqa: F811
    with pytest.raises(ValueError, match=r"guide\.streams is 'low' and guide\.task 'contrast'; expected 'high'"):
        manipulation(guide={**GUIDE, "streams": "low", "timesformer": OPTIONS["timesformer"]})
    made = manipulation(generator={"size": 36, "style_dim": 8, "widths": [8, 4], "official": None})
    with pytest.raises(ValueError, match=r"generator\.size \(36\) must be a multiple of"):
        made.check_data(data(folder, frames=1))
    with pytest.raises(ValueError, match="the arm that this one starts from"):
        made.start_from(module(streams="low").export())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"guide": {**GUIDE, "sizes": 1}}, r"model.guide: unknown key 'sizes'; did you mean 'size'"),
        ({"guide": {**GUIDE, "temperature": -1.0}}, r"model.guide.temperature is -1.0, expected greater than 0"),
        ({"guide": {**GUIDE, "bert": {"size": 1}}}, r"model.guide.bert: size: unknown key"),
        ({"guide": {}}, r"model.guide: the key 'bert' is missing"),
        ({"generator": {**GENERATOR, "width": [8]}}, r"model.generator: width: unknown key"),
        ({"generator": {**GENERATOR, "widths": []}}, r"model.generator: widths is \[\], .* at least 1 item"),
        (
            {"generator": {**GENERATOR, "style_dim": 0}},
            r"generator: style_dim is 0, expected greater than or equal to 1",
        ),
        ({"encoder": {**ENCODER, "norm": "batch"}}, r"model.encoder: norm is 'batch', expected 'frozen' or 'group'"),
        ({"encoder": {**ENCODER, "strides": [2]}}, r"strides \(\[2\]\) must have one for each of the 3 layers"),
        ({"encoder": {"width": 8}}, r"model.encoder: pool: missing, expected a value"),
    ],
)
def test_settings_that_are_misspelt_or_do_not_fit_are_refused(changes, told):
    block = {"_target_": "lightning_modules.hd_vila.manipulation.Manipulation", "guide": GUIDE, "generator": GENERATOR}
    with torch.device("meta"), pytest.raises(ValueError, match=told):
        settings.bind(block | {"encoder": ENCODER, "hidden": 16} | WEIGHTS | changes, "model")()


def test_it_starts_from_the_arm_that_reads_one_frame(batch):
    made, guide = manipulation(), module(**{**GUIDE, "temperature": 0.02})
    torch.nn.init.normal_(guide.network.transformer.v_proj.weight)
    made.start_from(guide.export())
    pictures = made.pictures(batch)
    with torch.no_grad():
        torch.testing.assert_close(made.seen(pictures)[0], guide.eval()(batch["video"]))
