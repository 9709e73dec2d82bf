"""Sentences of the paper as tests, on small networks: losses, windows, stage two, data, refusals."""

import copy

import numpy as np
import pytest
import torch
from einops import rearrange

from lightning_modules import settings
from lightning_modules.datasets.world import views
from lightning_modules.lf_vila.clips import EventBatches, EventClips
from lightning_modules.lf_vila.evaluation import BEST, OTHER, aligned, answered, matched, moments, over_a_bar
from lightning_modules.lf_vila.losses import (
    IGNORED,
    Draw,
    draw_times,
    mismatched,
    perfect_loss,
    span_loss,
    temporal_contrast,
)
from lightning_modules.lf_vila.module import LFVILA
from lightning_modules.lf_vila.network import MASKED, VideoSwin, relative_positions, shift_mask
from stages.composing import compose

F = torch.nn.functional


@pytest.fixture(scope="module")
def tiny() -> dict:
    return compose("tiny", system="lf_vila")["system"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("world") / "set"
    config = compose("tiny", dataset="world_long_clips")["dataset"] | {"sizes": {"train": 64, "val": 16, "test": 16}}
    views.prepare(path, **{name: value for name, value in config.items() if name != "_target_"})
    return path


def build(tiny: dict, **changes) -> LFVILA:
    torch.manual_seed(0)
    model = copy.deepcopy(tiny["model"])
    for name, value in changes.items():
        *path, last = name.split("__")
        place = model
        for key in path:
            place = place[key]
        place[last] = value
    return settings.bind(model, "model")()


def events(folder, **changes) -> EventClips:
    splits = {name: {"source": name, "rows": None} for name in ("train", "val", "test")}
    options = {"splits": splits, "text_length": 5, "frames": 8, "batch_size": 32, "evaluation_batch_size": 16} | changes
    return EventClips(folder=folder, seed=0, **options)


def some(data: EventClips, rows: int = 16) -> dict[str, torch.Tensor]:
    return {name: x[:rows] for name, x in next(iter(data.evaluation_batches("val"))).items()}


# the contrast over time


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(1)), dim=-1)


@pytest.mark.parametrize("roll_from", [0, 1])
def test_contrast_over_time_pair_by_pair(roll_from):
    video, text = unit(2, 6, 4, 8)
    torch.manual_seed(3)
    draw = draw_times(6, 4, keys=2, values=2)
    found = temporal_contrast(video, text, 5.0, draw, others=3, roll_from=roll_from)
    total = 0.0
    for queries, candidates in ((text, video), (video, text)):
        terms = []
        for row in range(6):
            values = draw.values[row].tolist()
            for key in draw.keys[row].tolist():
                distance = [abs(value - key) for value in values]
                if distance[0] == distance[1]:
                    continue
                others = [(row - by) % 6 for by in range(roll_from, roll_from + 3)]
                rows = [candidates[row, value] for value in values]
                rows += [candidates[other, draw.other[other, 0]] for other in others]
                logits = 5.0 * torch.stack(rows) @ queries[row, key]
                terms.append(torch.logsumexp(logits, 0) - logits[distance.index(min(distance))])
        total = total + torch.stack(terms).mean()
    torch.testing.assert_close(found, total)


def test_an_untrained_model_guesses_among_five():
    alike = torch.ones(8, 4, 1)
    loss = temporal_contrast(alike, alike, 20.0, draw_times(8, 4, keys=2, values=2), others=3)
    assert loss.item() == pytest.approx(2 * np.log(5))


def test_one_key_of_twelve_is_a_tie():
    """8.3 %: as far from one value as from the other."""
    torch.manual_seed(0)
    draw = draw_times(40_000, 4, keys=2, values=2)
    distance = (draw.values[:, None] - draw.keys[:, :, None]).abs()
    assert (distance[..., 0] == distance[..., 1]).float().mean().item() == pytest.approx(1 / 12, abs=0.003)


def test_ties_alone_give_no_loss_and_no_gradient():
    video, text = unit(2, 4, 4, 8)
    video.requires_grad_(True)
    draw = Draw(torch.ones(4, 1, dtype=torch.long), torch.tensor([[0, 2]] * 4), torch.zeros(4, 1, dtype=torch.long))
    loss = temporal_contrast(video, text, 5.0, draw, others=1)
    loss.backward()
    assert loss.item() == 0 and not video.grad.any()
    assert IGNORED == -100


@pytest.mark.slow
def test_the_released_others_contradict_the_target():
    """Of aligned features one in four "others" is the positive itself; the mean over all draws is what is drawn."""
    video = torch.eye(6 * 8 * 4)[: 8 * 4].view(8, 4, -1)
    torch.manual_seed(0)
    drawn = {
        roll: np.mean([
            temporal_contrast(video, video, 20.0, draw_times(8, 4, keys=2, values=2), others=3, roll_from=roll)
            for _ in range(1000)
        ])
        for roll in (0, 1)
    }  # fmt: skip
    for roll, value in drawn.items():
        assert value == pytest.approx(perfect_loss(4, 20.0, values=2, others=3, roll_from=roll), rel=0.05)
    assert drawn[0] > 3 * drawn[1]


def test_half_of_the_videos_go_to_another_row():
    tokens = torch.arange(6.0)[:, None, None]
    moved, own = mismatched(tokens)
    assert moved.flatten().tolist() == [2, 0, 1, 3, 4, 5] and own.tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="a batch of 3 has no two videos to exchange: take at least 4"):
        mismatched(tokens[:3])


def test_frames_that_matter_weigh_as_much_as_all_others():
    logits = torch.zeros(1, 8, 2)
    logits[0, 2, 1] = 4.0
    labels = torch.tensor([[0, 0, 1, 0, 0, 0, 0, 0]])
    found = span_loss(logits, labels)
    each = F.cross_entropy(logits[0], labels[0], reduction="none")
    assert found.item() == pytest.approx(0.5 * (each[2] + each[labels[0] == 0].mean()).item())
    assert span_loss(logits, torch.ones_like(labels)).isfinite()


# windows


def swin(times: tuple[int, ...] = (2, 4, 8), **options) -> VideoSwin:
    torch.manual_seed(0)
    levels = [
        {"depth": 2, "heads": 2, "window": [times[0], 2, 2], "merge": True},
        {"depth": 2, "heads": 2, "window": [times[1], 2, 2], "merge": True},
        {"depth": 2, "heads": 2, "window": [times[2], 1, 1], "merge": False},
    ]
    sizes = {"patch": [1, 4, 4], "width": 8, "levels": levels, "local_window": 2, "init_std": 0.3} | options
    return VideoSwin(**sizes).eval()


@torch.no_grad()
def test_the_local_branch_sees_one_clip_and_the_last_level_the_whole_video():
    encoder, video = swin(), torch.randn(1, 3, 8, 16, 16)
    other = video.clone()
    other[:, :, 6:] = torch.randn(1, 3, 2, 16, 16)
    (whole, local), (new_whole, new_local) = encoder(video), encoder(other)
    torch.testing.assert_close(new_local[:, :6], local[:, :6])
    assert (new_local[:, 6:] != local[:, 6:]).any()
    assert ((new_whole - whole).abs().amax((0, 2, 3, 4)) > 1e-4).all()


@torch.no_grad()
@pytest.mark.parametrize(("times", "blind"), [((2, 2, 2), True), ((2, 4, 8), False), ((8, 8, 8), False)])
def test_short_windows_are_blind_to_the_order_of_clips(times, blind):
    encoder, video = swin(times, local_window=8), torch.randn(1, 3, 8, 16, 16)
    other = rearrange(
        rearrange(video, "b c (n t) h w -> b c n t h w", t=2)[:, :, [2, 0, 3, 1]], "b c n t h w -> b c (n t) h w"
    )
    same = torch.allclose(encoder(video)[0].mean(1), encoder(other)[0].mean(1), atol=1e-5)
    assert same == blind


@torch.no_grad()
def test_a_window_as_long_as_the_video_or_longer_is_the_same():
    """Position is relative: a longer table is read around its middle."""
    long, short = swin((16, 16, 16), local_window=16), swin((8, 8, 8), local_window=16)
    state = {}
    for name, x in long.state_dict().items():
        if name.endswith("bias_table"):
            area = len(x) // 31
            x = x.view(31, area, -1)[8:23].flatten(0, 1)
        state[name] = x
    short.load_state_dict(state)
    video = torch.randn(1, 3, 8, 16, 16)
    torch.testing.assert_close(long(video)[0], short(video)[0])


def test_relative_positions():
    index = relative_positions((2, 1, 3), (2, 1, 3))
    assert index[0, 0] == index[4, 4] == (2 * 3 - 1) * 1 + 2
    assert index[5, 0] == index.max() == 3 * 5 - 1 and index[0, 5] == 0


def test_the_shift_parts_what_was_not_together():
    """A map of 1 x 4 x 4, windows of 2 x 2 and a shift of 1: the last window holds four corners."""
    mask = shift_mask((1, 4, 4), (1, 2, 2), (0, 1, 1))
    assert not mask[0].any()
    assert (mask[3] == MASKED * (1 - torch.eye(4))).all()


def test_a_local_branch_of_another_width_is_refused():
    with pytest.raises(
        ValueError, match=r"local_window \(1\) lets the local features leave before level 0, of width 8"
    ):
        swin(local_window=1)


# the module


@pytest.mark.slow
def test_clips_are_aligned_by_training(tiny, folder):
    """Steps on few videos bring clips to their sentences, which as many on the loss over whole videos do not."""

    def aligned_share(module, batch):
        module.eval()
        _, _, clips, sentences = module.features(batch)
        module.train()
        return ((clips @ sentences.mT).argmax(2) == torch.arange(4)).float().mean().item()

    found, steps = {}, 200
    for weight in (0.25, 0.0):
        module, data = build(tiny, time_weight=weight), events(folder)
        batch = some(data)
        optimizer = torch.optim.Adam([x for x in module.parameters() if x.requires_grad], 1e-3)
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            module.training_step(batch).backward()
            optimizer.step()
            if weight and step % 20 == 0 and aligned_share(module, batch) > 0.7:
                steps = step
                break
        assert module.predictions(data, torch.device("cpu"))["clips/test"].shape == (16, 4, 64)
        found[weight] = aligned_share(module, batch)
    assert found[0.25] > 0.6 > 0.45 > found[0.0]  # chance: 0.25


def test_stage_two_trains_its_own_parts_only(tiny, folder):
    module = build(tiny, task="fuse")
    module.check_data(events(folder))
    before = {name: x.clone() for name, x in module.network.named_parameters()}
    optimizer = torch.optim.SGD([x for x in module.parameters() if x.requires_grad], 0.1)
    torch.manual_seed(0)
    module.train()
    module.training_step(some(events(folder))).backward()
    optimizer.step()
    changed = {name for name, x in module.network.named_parameters() if not torch.equal(x, before[name])}
    assert {name.split(".")[0] for name in changed} == {"text_encoder", "video_token_pos"}
    assert all(
        ".layer.3." in name or ".pooler." in name or ".cls." in name for name in changed if "text_encoder" in name
    )
    assert any(".pooler." in name for name in changed)
    assert not module.network.video_encoder.training and not module.network.text_encoder.bert.encoder.layer[0].training
    assert module.network.text_encoder.bert.encoder.layer[3].training


def test_stage_two_may_train_the_encoders_as_well(tiny, folder):
    module = build(tiny, task="fuse", frozen=False)
    module.check_data(events(folder))
    module.train()
    module.training_step(some(events(folder))).backward()
    unread = {id(x) for part in module.network.unread_parts() for x in part.parameters()}
    for name, x in module.network.named_parameters():
        assert x.requires_grad == (id(x) not in unread), name
        assert (x.grad is not None) == x.requires_grad, name
    assert module.network.video_encoder.training and module.network.text_encoder.bert.encoder.layer[0].training


def test_stage_two_stores_matches_and_flow(tiny, folder):
    data = events(folder)
    found = build(tiny, task="fuse").predictions(data, torch.device("cpu"))
    assert {name: tuple(x.shape) for name, x in found.items() if not name.startswith("flow/")} == {
        f"{name}/test": (16,) for name in ("own", "other", "permuted", "group")
    }
    for pairs in ("own", "other", "content"):
        assert found[f"flow/{pairs}/relative/test"].shape == (16, 1), "rows, layers"
        assert found[f"flow/{pairs}/rolled_out/test"].shape == (16,)
    assert matched({name: found[f"{name}/test"].numpy() for name in ("own", "other")}).keys() == {"match_percent"}


def test_stage_two_begins_with_stage_one_and_the_heads_with_stage_two(tiny):
    one, two, answers = build(tiny), build(tiny, task="fuse"), build(tiny, task="answer", answers=5)
    classes = build(tiny, task="classify", answers=5)
    for x in one.parameters():
        torch.nn.init.constant_(x, 0.5)
    two.start_from(one.export())
    assert all((x == 0.5).all() for part in two.network.frozen_parts() for x in part.parameters())
    for x in two.parameters():
        torch.nn.init.constant_(x, 0.25)
    answers.start_from(two.export())
    assert all((x == 0.25).all() for name, x in answers.network.named_parameters() if "classifier" not in name)
    classes.start_from(one.export())
    assert (classes.network.video_global_proj.weight == 0.5).all()
    with pytest.raises(ValueError, match="of another architecture"):
        answers.start_from({name: x for name, x in two.export().items() if "layer.3" not in name})


def test_questions_choices_and_classes_are_answered(tiny, folder):
    batch = some(events(folder), 4)
    batch["labels"] = torch.tensor([0, 4, 2, 1])
    module = build(tiny, task="answer", answers=5)
    assert module.answers(batch).shape == (4, 5) and module.training_step(batch).isfinite()
    strange = batch | {"labels": torch.tensor([-1, 4, 2, 1])}  # the first answer cannot be given, and does not count
    with torch.no_grad():
        others = {name: x[1:] for name, x in batch.items()}
        losses = [module.eval().validate(events(folder), [rows])["loss"] for rows in (strange, others)]
    torch.testing.assert_close(*losses)
    module = build(tiny, task="classify", answers=5)
    assert module(batch["video"]).shape == (4, 5) and module.training_step(batch).isfinite()
    for name in ("token_ids", "attention_mask"):
        batch[name] = torch.stack([batch[name], batch[name].flip(1), batch[name]], 1)
    batch |= {"labels": torch.tensor([0, 2, 1, 1]), "frame_labels": torch.ones(4, 8, dtype=torch.long)}
    module = build(tiny, task="choose")
    scores, frames = module.choices(batch)
    assert scores.shape == (4, 3) and frames.shape == (4, 8, 2)
    torch.testing.assert_close(scores[:, 0], scores[:, 2])
    assert module.training_step(batch).isfinite()


def test_what_is_not_decayed(tiny):
    module = build(tiny)
    module.recipe = tiny["pretrain"]
    _, free = module.parameter_groups()
    names = {id(x): name for name, x in module.named_parameters()}
    free = {names[id(x)] for x in free["params"]}
    assert "network.video_encoder.layers.0.blocks.0.attn.relative_position_bias_table" in free
    assert "network.text_encoder.bert.embeddings.LayerNorm.weight" in free
    assert not {"network.video_encoder.norm.weight", "network.sent_embedding.norm.weight"} & free


# data


def test_batches_hold_whole_groups_and_neighbours_have_other_events(folder):
    data = events(folder)
    columns = data._columns("train")
    batches = EventBatches(columns, seed=0, group=data.group, batch_size=32)
    seen = [batches[(0, place)]["group"] for place in range(len(batches))]
    for group in seen:
        assert (group.bincount()[group.unique()] == 4).all()
        assert (group != group.roll(1)).all() and (group != group.roll(3)).all()
    assert len(torch.cat(seen).unique()) == 16
    assert not torch.equal(batches[(1, 0)]["group"], seen[0])


def test_frames_are_shown_evenly(folder):
    all_of_them, half = (some(events(folder, frames=frames))["video"] for frames in (None, 8))
    torch.testing.assert_close(half, all_of_them[:, :, ::2])
    assert events(folder, frames=4).video_shape == (3, 4, 24, 24)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 30}, r"data.batch_size \(30\) must be a multiple of 4"),
        ({"frames": 6}, r"data.frames \(6\) must be a multiple of the 4 events, and divide the frames .*\(16\)"),
    ],
)
def test_data_that_do_not_fit_are_refused(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        _ = events(folder, **changes).video_shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network__frames": 6}, r"frames \(6\) must be a multiple of clips \(4\)"),
        ({"network__layers": [1, 1, 1]}, r"layers \(\[1, 1, 1\]\) must add up to the 4 layers of BERT"),
        ({"network__bert__sizes__hidden_size": 32}, r"last width of the video encoder is 64, but BERT's is 32"),
        ({"answers": 3}, r"model.answers is 3, but task 'align' needs null"),
        ({"task": "answer"}, r"model.answers is None, but task 'answer' needs a number"),
        ({"network__pool": [2, 1]}, r"pool \(\[2, 1\]\) is larger than the last map, 1 x 1"),
        ({"task": "classify", "answers": 3, "network__pool": [1, 2]}, r"pool \(\[1, 2\]\) is larger than the last map"),
        ({"network__video__patch": [2, 8, 8]}, r"video.patch begins with 2 frames, expected 1"),
        ({"keys": 5}, r"keys \(5\) and model.values \(2\) are drawn from model.network.clips \(4\)"),
        ({"values": 1}, r"model.values is 1, expected greater than or equal to 2"),
        ({"network__clips": "4"}, r"model.network: clips is '4', expected a valid integer"),
        ({"network__video__levels": []}, r"model.network: video.levels is \[\], "),
        (
            {"network__video__drop_path": 1.5},
            r"model.network: video.drop_path is 1.5, expected less than or equal to 1",
        ),
        ({"network__video__shift": 1}, r"model.network: video.shift: unknown key"),
        ({"network__bert__sizes__hidden_sizes": 64}, r"model.network: bert.sizes.hidden_sizes: unknown key"),
        ({"preprocess__men": 1}, r"model.preprocess: men: unknown key"),
    ],
)
def test_models_that_cannot_be_built_are_refused(tiny, changes, message):
    with pytest.raises(ValueError, match=message):
        build(tiny, **changes)


@pytest.mark.parametrize(
    ("changes", "data", "message"),
    [
        ({}, {"frames": 16}, r"videos of \(3, 16, 24, 24\) .* for \(3, 8, 24, 24\)"),
        ({"network__clips": 2}, {}, r"4 sentences of each video, but model.network.clips is 2"),
        ({"network__bert__sizes__vocab_size": 40}, {}, r"the tokenizer has 133 ids, but BERT knows 40"),
    ],
)
def test_models_that_do_not_fit_the_data_are_refused(tiny, folder, changes, data, message):
    with pytest.raises(ValueError, match=message):
        build(tiny, **changes).check_data(events(folder, **data))


def test_paragraphs_that_are_too_long_are_refused(tiny):
    network = build(tiny).network
    ids = torch.ones(1, 5, 5, dtype=torch.long)
    with pytest.raises(ValueError, match="5 sentences of 5 tokens do not fit the 4 sentences and 32 tokens"):
        network.read_texts(ids, ids.bool())


# evaluation


def test_metrics_of_stage_one():
    """Two groups of two: the third video finds its events, but not its order."""
    text = torch.eye(4).numpy()
    video = text[[0, 1, 3, 3]]
    clips = np.eye(2)[None].repeat(4, 0)
    stored = {
        "video": video, "text": text, "clips": clips, "sentences": clips[:, ::-1], "group": np.array([0, 0, 1, 1]),
        "permuted": text[[1, 0, 3, 2]],
    }  # fmt: skip
    found = aligned(stored)
    assert found["alignment_percent"] == 0
    assert found["right_events_percent"] == 100
    assert found["right_order_percent"] == 75
    assert found["blind_order_percent"] == 50
    assert found["in_order_percent"] == 75
    assert aligned({**stored, "sentences": clips})["alignment_percent"] == 100


def test_retrieval_of_single_clips_counts_no_contrast_over_time(tiny):
    """Condensed Movies: one clip, one sentence."""
    module = build(tiny, network__clips=1, time_weight=0.0)
    assert "perfect_loss" not in module.facts() and "perfect_loss" in build(tiny).facts()


def test_recall_at_fifty():
    """Paragraph 0 is nearer to 50 other videos than to its own, paragraph 1 to 49."""
    text = np.eye(60, dtype=np.float32)
    text[0, 1:51], text[1, 2:51] = 2, 2
    clips = np.zeros((60, 2, 1), np.float32)
    found = aligned({"video": np.eye(60, dtype=np.float32), "text": text, "clips": clips, "sentences": clips})
    assert found["text_to_video/recall_at_50_percent"] == pytest.approx(100 * 59 / 60)


def test_moments_are_shown_under_the_clips(tiny, folder):
    module, data = build(tiny), events(folder)
    module.check_data(data)
    stored = {
        name.removesuffix("/test"): x.numpy() for name, x in module.predictions(data, torch.device("cpu")).items()
    }
    assert stored["shown"].shape == (3, 8, 24, 24, 3) and stored["said"].shape == (3, 4, 5)
    video = next(data.evaluation_batches("test"))["video"][:3].numpy()
    np.testing.assert_array_equal(stored["shown"], np.moveaxis(video, 1, -1))
    gallery = moments(stored)
    assert len(gallery.rows) == 3 * 4
    best = (stored["clips"][:3] @ stored["sentences"][:3].swapaxes(1, 2)).argmax(1).ravel()
    for row, (sentence, *clips) in enumerate(gallery.rows):
        ((text, right),) = sentence.text
        assert text.startswith("the ") and right == (best[row] == row % 4)
        told = [number for number, clip in enumerate(clips) if ", the nearest to" in clip.picture.alt]
        assert len(clips) == 4 and told == [best[row]]
        cosines = stored["clips"][row // 4] @ stored["sentences"][row // 4, row % 4]
        assert [clip.label for clip in clips] == [f"cosine {value:.2f}" for value in cosines]


@pytest.mark.parametrize(("share", "tall", "color"), [(0.0, 1, OTHER), (0.5, 12, OTHER), (1.0, 24, BEST)])
def test_a_bar_under_a_clip_is_as_high_as_its_share(share, tall, color):
    picture = over_a_bar(np.zeros((2, 24, 24, 3), np.uint8), share)
    assert picture.shape == (48 + 26, 2 * 48, 3) and not picture[:48].any()
    bar = (picture[48:, 1:-1] == color).all((1, 2))
    assert bar.sum() == tall and bar[26 - tall :].all()


def test_metrics_of_stage_two_and_answers():
    found = matched({"own": np.array([1.0, -1.0]), "other": np.array([-1.0, -2.0]), "permuted": np.array([0.0, 0.0])})
    assert found == {"match_percent": 75.0, "in_order_percent": 50.0}
    stored = {"logits": np.eye(3), "labels": np.array([0, 1, -1])}
    assert answered(stored)["accuracy_percent"] == pytest.approx(200 / 3)
    spans = {"frames": np.array([[1.0, -1.0]]), "frame_labels": np.array([[1, 1]])}
    assert answered(stored | spans)["frames_percent"] == 50
