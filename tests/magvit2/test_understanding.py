"""Actions from tokens and from pixels: what the classifier sees, and what is measured."""

import numpy as np
import pytest
import torch

from lightning_modules.magvit2 import predictor as answering
from lightning_modules.magvit2.generator_evaluation import (
    at_rate,
    coding,
    evaluate_classifier,
    evaluate_targets,
    out_of_reach,
)
from lightning_modules.magvit2.understanding import ActionClassifier, SubTokens, TargetPredictor, Tubelets
from lightning_modules.runs import Run
from tests.magvit2.test_generator import TOKENIZER, batch

READER = {"tokenizer": TOKENIZER, "bits": [1, 3], "layers": 1, "hidden_size": 8, "heads": 2}


def classifier(source="tokens", **options):
    torch.manual_seed(0)
    return ActionClassifier(reader={**READER, "reverse": True, **options}, source=source, num_classes=3)


def predictor(targets="tokens", **options):
    torch.manual_seed(0)
    return TargetPredictor(reader={**READER, **options}, targets=targets)


class Finished(Run):
    """A run whose files are given."""

    facts = None

    def __init__(self, facts, arrays):
        object.__setattr__(self, "seed", 0)
        object.__setattr__(self, "facts", facts)
        object.__setattr__(self, "arrays", arrays)

    def predictions(self):
        return self.arrays


def test_a_token_is_the_sum_of_its_sub_tokens():
    embed = SubTokens([1, 3], 4)
    first, second = (table.weight for table in embed.tables)
    assert torch.equal(embed(torch.tensor([[13]]))[0, 0], first[1] + second[6])


def test_a_place_of_the_grid_has_the_pixels_that_its_token_stands_for():
    """Tokens of a causal tokenizer: the first frame alone, then two frames each."""
    embed = Tubelets(2, 4, 5)
    video = torch.rand(1, 3, 5, 16, 16)
    changed = video.clone()
    changed[0, :, 3, 9, 14] += 1  # frame 3 is in the third latent frame, row 2, column 3
    different = (embed(video) != embed(changed)).any(-1)[0]
    assert different.nonzero().tolist() == [[2 * 16 + 2 * 4 + 3]]
    first = embed.linear(video[:, :, :1].expand(-1, -1, 2, -1, -1)[..., :4, :4].flatten(1))
    assert torch.allclose(embed(video)[:, 0], first, atol=1e-6)


@pytest.mark.parametrize("source", ["tokens", "pixels"])
def test_reversed_clips_are_other_actions(source):
    built, given = classifier(source=source).eval(), batch()
    back = torch.tensor([0, 1, 0, 1])
    assert built.actions(given["labels"], back).tolist() == [0, 4, 2, 3]
    logits = built.logits(given["video"], back)
    turned = torch.where(back.view(-1, 1, 1, 1, 1) == 1, given["video"].flip(2), given["video"])
    assert logits.shape == (4, 6) and torch.equal(logits, built(turned))


def test_tokens_of_both_directions_are_kept_once():
    built, given, computed = classifier(keep_tokens=True).train(), batch(), []
    encode = built.reader.tokenizer.encode
    built.reader.tokenizer.encode = lambda video: computed.append(len(video)) or encode(video)
    for back in (torch.zeros(4), torch.ones(4), torch.tensor([0, 1, 0, 1])):
        kept = built.logits(given["video"], back.long(), given["rows"])
        assert torch.equal(kept, built.logits(given["video"], back.long()))
    assert len(computed) == 2 + 3  # both directions at once, and three times without numbers of rows


def test_only_the_transformer_is_trained():
    built = classifier().train()
    built.training_step(batch()).backward()
    assert all(p.grad is None for p in built.reader.tokenizer.parameters()) and not built.reader.tokenizer.training
    trained = {id(p) for group in built.parameter_groups() for p in group["params"]}
    assert trained == {id(p) for p in built.parameters() if p.grad is not None}


def test_the_tokenizer_of_an_arm_is_taken_over_and_bits_must_be_those_of_a_token():
    built, other = classifier(), classifier()
    other.start_from({f"tokenizer.{name}": x + 1 for name, x in built.reader.tokenizer.state_dict().items()})
    assert torch.equal(other.reader.tokenizer.encoder.head.bias, built.reader.tokenizer.encoder.head.bias + 1)
    with pytest.raises(ValueError, match="the tokenizer of the arm in `from`"):
        other.start_from({"tokenizer.x": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"bits \(\[2, 3\]\) make 32 tokens, but the tokenizer has 16"):
        classifier(bits=[2, 3])
    with pytest.raises(ValueError, match=r"model.reader: unknown key 'head'; did you mean 'heads'"):
        classifier(head=2)


def test_clips_are_reversed_only_if_asked_for():
    built, given = classifier(reverse=False).train(), batch()
    assert not built.reader.directions(given["labels"]).any() and built(given["video"]).shape == (4, 3)
    assert classifier().reader.directions(torch.zeros(99, dtype=torch.long)).float().mean() == pytest.approx(
        0.5, abs=0.2
    )


def test_tokens_of_hidden_places_are_predicted_from_the_other_places():
    """By hand: both sub-tokens' cross-entropies at hidden places; what a hidden place shows has no part in it."""
    built, given = predictor().eval(), batch()
    back, hidden = torch.zeros(4, dtype=torch.long), torch.zeros(4, 48, dtype=torch.bool)
    hidden[:, [0, 5]] = True
    losses = built.losses(given["video"], back, hidden)
    vectors = built.reader.embed(given["video"] / 255)
    vectors[:, [0, 5]] = built.hidden
    answers = built.head(built.reader(vectors))[:, [0, 5]].flatten(0, 1)
    tokens = built.reader.tokenizer.encode(given["video"] / 255).flatten(1)[:, [0, 5]].flatten()
    chances = answers[:, :2].log_softmax(1), answers[:, 2:].log_softmax(1)
    picked = [chances[0][range(8), tokens % 2], chances[1][range(8), tokens // 2]]
    torch.testing.assert_close(losses, -(picked[0] + picked[1]).view(4, 2).mean(1))
    with pytest.raises(ValueError, match=r"bits \(\[2, 3\]\) make 32 tokens"):
        predictor(bits=[2, 3])


def test_or_their_pixels():
    built, given = predictor("pixels").eval(), batch()
    back, hidden = torch.tensor([0, 1, 0, 1]), torch.zeros(4, 48, dtype=torch.bool)
    hidden[:, 7] = True
    shown = torch.where(back.view(-1, 1, 1, 1, 1) > 0, given["video"].flip(2), given["video"]) / 255
    vectors = built.reader.embed(shown)
    vectors[:, 7] = built.hidden
    error = (built.head(built.reader(vectors))[:, 7] - built.reader.embed.pixels(shown)[:, 7]) ** 2
    torch.testing.assert_close(built.losses(given["video"], back, hidden), error.mean(1))


def test_every_clip_that_is_judged_has_a_loss_of_its_own():
    """So the mean over clips does not depend on how they are cut into batches."""

    class Data:
        def __init__(self):
            self.rows, self.video_shape, self.num_classes = {"test": None}, (3, 5, 16, 16), 3

        def evaluation_batches(self, split):
            yield {name: x[:3] for name, x in batch().items()}
            yield {name: x[3:] for name, x in batch().items()}

    built = predictor()
    losses = built.predictions(Data(), torch.device("cpu"))["losses"]
    alone = built.judged_losses(batch()["video"], batch()["labels"])
    torch.testing.assert_close(losses, alone.detach())


def test_three_in_four_places_are_hidden_and_only_the_transformer_is_trained():
    built, given, seen = predictor().train(), batch(), []
    losses = built.losses
    built.losses = lambda video, back, hidden, rows: seen.append(hidden) or losses(video, back, hidden, rows)
    built.training_step(given).backward()
    assert seen[0].sum(1).tolist() == [36] * 4 and (seen[0][0] != seen[0][1]).any()
    assert all(p.grad is None for p in built.reader.tokenizer.parameters()) and built.hidden.grad.any()


def test_a_classifier_begins_with_what_has_predicted_tokens():
    built, start = classifier(source="pixels"), predictor()
    head = built.head.weight.clone()
    built.start_from({name: x + 1 for name, x in start.export().items()})
    assert torch.equal(built.reader.positions, start.reader.positions + 1) and torch.equal(built.head.weight, head)
    assert torch.equal(built.reader.tokenizer.encoder.head.bias, start.reader.tokenizer.encoder.head.bias + 1)
    with pytest.raises(ValueError, match="the transformer of the arm in `from` is of another architecture"):
        classifier().start_from(start.export())  # it reads tokens
    found = evaluate_targets([Finished({"parameters": 7}, {"losses": np.array([1.0, 2.0])})], "x")
    assert found.metrics == {0: {"x/loss": 1.5, "x/parameters": 7.0}}


@pytest.mark.parametrize("reverse", [True, False])
def test_the_actions_in_a_video_are_named(reverse, monkeypatch):
    built, video = classifier(reverse=reverse).eval(), batch()["video"][:1]
    monkeypatch.setattr(answering, "clip_of", lambda path, tokenizer: video / 255)
    chances = built(video)[0].softmax(0).tolist()
    lines = list(answering.Recogniser(built).answer("mine.mp4", top=9))
    assert [line["probability"] for line in lines] == pytest.approx(sorted(chances, reverse=True), abs=1e-6)
    best = int(np.argmax(chances))
    direction = {"direction": "backward" if best >= 3 else "forward"} if reverse else {}
    assert lines[0] == {"rank": 1, "class": best % 3, **direction, "probability": lines[0]["probability"]}
    with pytest.raises(ValueError, match="top is -1, expected at least 1"):
        list(answering.Recogniser(built).answer("mine.mp4", top=-1))


def test_accuracy_is_that_of_actions_and_of_their_two_halves():
    actions = np.array([0, 1, 3, 5])
    logits = np.eye(6)[[0, 4, 3, 2]] * 5  # all right; class right; all right; class right
    found = evaluate_classifier(
        [Finished({"classes": 3, "parameters": 7}, {"logits": logits, "actions": actions})], "x"
    )
    metrics = found.metrics[0]
    assert (metrics["x/accuracy_percent"], metrics["x/class_percent"], metrics["x/direction_percent"]) == (50, 100, 50)
    with pytest.raises(ValueError, match="there is no trained arm"):
        evaluate_classifier([], "x")


def test_rates_and_what_a_codec_reaches_at_the_same_rate():
    arrays = {
        "coded/bits": np.array([100.0, 300.0, 900.0]), "coded/fixed": np.full(3, 400.0),
        "coded/written": np.array([320.0]), "coded/again": np.array([True]),
        "coded/psnr": np.array([20.0, 22.0, 90.0]), "coded/ssim": np.array([0.5, 0.7, 0.9]),
        "codecs/hevc/clips": np.array(2), "codecs/av1/clips": np.array(2),
        "codecs/hevc/bits_per_pixel": np.array([0.4, 0.1]), "codecs/hevc/psnr": np.array([30.0, 20.0]),
        "codecs/hevc/ssim": np.array([0.9, 0.5]), "codecs/av1/bits_per_pixel": np.array([0.4, 0.3]),
        "codecs/av1/psnr": np.array([30.0, 20.0]), "codecs/av1/ssim": np.array([0.9, 0.5]),
    }  # fmt: skip
    found = coding(arrays, pixels=1000, tokens=48)
    assert found["bits_per_pixel"] == pytest.approx(1300 / 3000) and found["fixed_bits_per_pixel"] == 0.4
    assert found["nll_bits"] == pytest.approx(1300 / 3 / 48) and found["lossless_percent"] == 100
    assert found["beside/psnr"] == 21 and found["hevc/psnr"] == pytest.approx(25)  # 0.2, the middle of 0.1 and 0.4
    assert "av1/psnr" not in found and at_rate(arrays, "av1", "psnr", 0.5) is None
    assert found["hevc/equal_length/psnr"] == 30 and found["av1/equal_length/ssim"] == 0.9
    why = "at its 2 qualities it takes 0.3000 to 0.4000 bits per pixel, while tokens take 0.2000 (seed 0)"
    assert out_of_reach([Finished({"pixels": 1000}, arrays)]) == {"av1": why}
    longer = arrays | {"coded/fixed": np.full(3, 480.0)}
    assert "hevc/equal_length/psnr" not in coding(longer, pixels=1000, tokens=48)
    assert out_of_reach([Finished({"pixels": 1000}, longer)]).keys() == {"av1", "hevc/equal_length", "av1/equal_length"}
    for codec in ("hevc", "av1"):
        del arrays[f"codecs/{codec}/bits_per_pixel"]
    few = "too few clips are judged"
    assert out_of_reach([Finished({"pixels": 1000}, arrays)]) == {"hevc": few, "av1": few}
