"""Every network and loss against what the official code gives for the same weights and inputs."""

import pytest
import torch

from lightning_modules import settings
from lightning_modules.lf_vila.losses import Draw, mismatched, span_loss, temporal_contrast
from lightning_modules.lf_vila.model import LongVideoText, VideoClassifier
from lightning_modules.lf_vila.module import TASKS, VIDEO_ONLY
from lightning_modules.lf_vila.weights import load_official, official, read_official
from lightning_modules.losses.contrastive import info_nce
from stages.composing import compose
from tests.lf_vila.reference import (
    CHOSEN,
    FACTS,
    GRADIENTS,
    KEYS,
    LABELS,
    MASKED,
    NETWORK,
    OTHER,
    SPANS,
    VALUES,
    batch,
    fill,
)

F = torch.nn.functional


def network(task: str):
    answers = 7 if task in ("answer", "classify") else None
    if task == "classify":
        built = VideoClassifier(**{name: NETWORK[name] for name in VIDEO_ONLY}, answers=answers)
    else:
        built = LongVideoText(**NETWORK, answers=answers, head=TASKS[task], aligned=task in ("align", "fuse"))
    fill(built, official(built))
    return built


def close(found, name: str) -> None:
    expected = torch.tensor(FACTS[name])
    found = found.detach().flatten()[: expected.numel()].view_as(expected)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def check_gradients(built, task: str, loss) -> None:
    loss.backward()
    named = {name.replace(".cls.seq_relationship.", ".seq_relationship."): x for name, x in built.named_parameters()}
    found = {name: float(named[name].grad.norm()) for name in GRADIENTS[task]}
    assert found == pytest.approx(GRADIENTS[task], rel=2e-5)


def test_stage_one():
    built, given = network("align"), batch()
    whole, local = built.video_encoder(given["video"])
    close(whole[0, 0, 0, 0], "map")
    close(whole.square().mean(), "map_square")
    close(local[0, 0, 0, 0], "local")
    close(local.square().mean(), "local_square")
    video, clips = built.video_features(given["video"])
    text, sentences = built.text_features(given["token_ids"], given["attention_mask"])
    close(text[0], "text")
    close(video[1], "video")
    close(sentences[0, 1], "sentence")
    close(clips[1, 2], "clip")
    losses = {"whole": info_nce(video, text, torch.tensor(20.0))}
    draw = Draw(KEYS, VALUES, OTHER)
    losses["over time"] = 0.25 * temporal_contrast(clips, sentences, 20.0, draw, others=3, roll_from=0)
    for name, loss in losses.items():
        close(loss, name)
    check_gradients(built, "align", sum(losses.values()))


def test_a_missing_sentence_counts_as_its_padding():
    built, given = network("align"), batch()
    given["token_ids"][0, 3], given["attention_mask"][0, 3] = 0, False
    close(built.text_features(given["token_ids"], given["attention_mask"])[0][0], "missing")


def test_stage_two():
    built, given = network("fuse"), batch()
    labels = torch.full((4, 4, 5), -100)
    for place, word in MASKED.items():
        labels[place] = word
    with torch.no_grad():
        texts, (tokens, _) = (
            built.read_texts(given["token_ids"], given["attention_mask"]),
            built.read_video(given["video"]),
        )
    tokens, own = mismatched(tokens.flatten(1, 2))
    states = built.fuse(texts, tokens.unflatten(1, (8, -1)))
    assert states.shape[1] == 1 + 4 * 5 + 8 * 6
    labels = labels.flatten(1).masked_fill(own[:, None] == 0, -100)
    words, match = built.words_and_match(states, labels != -100)
    close(words[0], "word")
    losses = {"words": F.cross_entropy(words, labels[labels != -100]), "match": 10 * F.cross_entropy(match, own)}
    for name, loss in losses.items():
        close(loss, name)
    check_gradients(built, "fuse", sum(losses.values()))


def test_answers():
    built, given = network("answer"), batch()
    states = built.fuse(
        built.read_texts(given["token_ids"], given["attention_mask"]), built.read_video(given["video"])[0]
    )
    logits = built.answer(states)
    close(logits[1], "answers")
    loss = F.cross_entropy(logits, LABELS)
    close(loss, "answer")
    check_gradients(built, "answer", loss)


def test_choices_with_spans():
    built, given = network("choose"), batch()
    ids, mask = (
        torch.stack([given[name], given[name].flip(1)], 1)[:2].flatten(0, 1) for name in ("token_ids", "attention_mask")
    )
    tokens = built.read_video(given["video"][:2])[0].repeat_interleave(2, dim=0)
    scores, frames = built.choose(built.fuse(built.read_texts(ids, mask), tokens), 2)
    close(scores, "choices")
    losses = {"choice": F.cross_entropy(scores, CHOSEN), "span": span_loss(frames, SPANS)}
    for name, loss in losses.items():
        close(loss, name)
    check_gradients(built, "choose", sum(losses.values()))


def test_classes():
    built = network("classify")
    logits = built(batch()["video"])
    close(logits[1], "classes")
    loss = F.cross_entropy(logits, LABELS)
    close(loss, "class")
    check_gradients(built, "classify", loss)


@pytest.mark.parametrize("task", TASKS)
def test_official_names_load_strictly(task):
    """With what the official code stores beside the parameters, in half precision, as DeepSpeed saves."""
    built, other = network(task), network(task)
    state = {name: x.half() if x.is_floating_point() else x for name, x in official(built).items()}
    for name in [name for name in state if name.endswith("relative_position_bias_table")]:
        state[name.replace("bias_table", "index")] = torch.zeros(1, dtype=torch.long)
    if task != "classify":
        state["sent_embedding.position_ids"] = torch.arange(40)[None]
        state["text_encoder.bert.embeddings.position_ids"] = torch.arange(40)[None]
    if task == "align":
        state["text_encoder.cls.predictions.bias"] = torch.zeros(50)
        state["text_encoder.seq_relationship.bias"] = torch.zeros(2)
        state["text_encoder.bert.pooler.dense.bias"] = torch.zeros(64)
    if task == "classify":
        state["video_frame_proj.bias"] = torch.zeros(64)
    for x in other.parameters():
        torch.nn.init.zeros_(x)
    load_official(other, state)
    for name, x in other.state_dict().items():
        torch.testing.assert_close(x, built.state_dict()[name].half().float(), msg=name)
    with pytest.raises(ValueError, match="1 keys differ"):
        load_official(other, state | {"surprise.weight": torch.zeros(1)})


ODD = [
    (lambda state: [1], r"no checkpoint of LF-VILA, .*; it has list"),
    (lambda state: {"module": state}, r"no checkpoint of LF-VILA, .*; it has module\. A state dict within it"),
    (lambda state: {f"module.{name}": x for name, x in state.items()}, r"it has module\.\S+, .* prefix, has to be"),
    (lambda state: state | {"video_encoder.step": "3"}, r"has video_encoder\.step, which is no tensor"),
]


@pytest.mark.parametrize(("change", "told"), ODD)
def test_files_that_are_no_checkpoint_are_refused(tmp_path, change, told):
    torch.save(change(official(network("align"))), tmp_path / "odd.bin")
    with pytest.raises(ValueError, match=told):
        read_official(tmp_path / "odd.bin")


def test_windows_of_other_rows_and_columns_are_refused():
    built = network("align")
    state = official(built)
    (name, *_) = [name for name in state if name.endswith("relative_position_bias_table")]
    with pytest.raises(
        ValueError, match=r"bias_table has 7 rows, expected a multiple of \d+: windows of \d x \d patches"
    ):
        load_official(built, state | {name: state[name][:7]})


def test_a_training_begins_with_an_official_checkpoint(tmp_path):
    """Of whatever stage: stage two and heads with stage one or two, retrieval with either."""
    model = compose("tiny", system="lf_vila")["system"]["model"]

    def made(**options):
        return settings.bind({**model, **options}, "model")()

    for stage, task in (("one", "align"), ("two", "fuse")):
        module = made(task=task)
        for x in module.parameters():
            torch.nn.init.constant_(x, 0.25)
        torch.save({name: x.half() for name, x in official(module.network).items()}, tmp_path / f"{stage}.bin")
    for stage in ("one", "two"):
        for options in ({}, {"task": "fuse"}, {"task": "answer", "answers": 3}, {"task": "classify", "answers": 3}):
            built = made(**options, official=str(tmp_path / f"{stage}.bin"))
            assert (built.network.video_encoder.layers[0].blocks[0].attn.qkv.weight == 0.25).all(), (stage, options)
            if options.get("task") == "answer":
                third = built.network.text_encoder.bert.encoder.layer[-1].output.dense.weight
                assert (third == 0.25).all() == (stage == "two")
    with pytest.raises(ValueError, match=r"one\.bin is of another architecture: .* differ"):
        made(network={**model["network"], "sentences": 3}, official=str(tmp_path / "one.bin"))
    with pytest.raises(ValueError, match=r"none\.bin does not exist"):
        made(official=str(tmp_path / "none.bin"))
