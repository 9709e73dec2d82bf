"""One task at each step: the schedule and its shares, padded batches as the control."""

import pytest
import torch

from lightning_modules.sequences.layout import Batch, arrange
from lightning_modules.videopoet.grouped import Alternation, Phase, padded, two_phases
from tests.sequences.test_prefix_lm import LAYOUT, WORDS, network, tokens

IMAGE = arrange(WORDS, prompt="task", visual_places=6, text=3, video=2, ends=False)


def test_images_come_first_and_videos_later():
    """Section 3.4: 90 % images in the first quarter of the steps, then 10 %."""
    order = Alternation(two_phases({"t2i": 1.0}, {"t2v": 1.0, "fp": 3.0}))
    drawn = [order.task(step, 4000) for step in range(4000)]
    assert drawn[:1000].count("t2i") / 1000 == pytest.approx(0.9, abs=0.03)
    assert drawn[1000:].count("t2i") / 3000 == pytest.approx(0.1, abs=0.03)
    assert drawn[1000:].count("fp") / drawn[1000:].count("t2v") == pytest.approx(3, rel=0.2)


def test_a_step_has_the_same_task_whatever_came_before():
    one, other = (Alternation(two_phases({"t2i": 1.0}, {"t2v": 1.0})) for _ in range(2))
    assert [one.task(step, 50) for step in range(50)] == [other.task(step, 50) for step in range(50)][:]
    assert one.task(37, 50) == other.task(37, 50)
    differ = Alternation(two_phases({"t2i": 1.0}, {"t2v": 1.0}), seed=1)
    assert [one.task(step, 50) for step in range(50)] != [differ.task(step, 50) for step in range(50)]


def test_tasks_of_one_kind_are_all_that_is_learnt():
    assert two_phases({}, {"t2v": 2.0}) == [Phase(0.25, {"t2v": 1.0}), Phase(1.0, {"t2v": 1.0})]
    assert two_phases({"t2i": 1.0}, {"t2v": 1.0}, turn=0.0, first=0.5) == [Phase(1.0, {"t2i": 0.5, "t2v": 0.5})]


def test_a_padded_batch_has_the_loss_of_its_parts():
    built, given = network(), tokens()
    parts = [LAYOUT.batch(given), IMAGE.batch(given | {"video": given["video"][:, :2]})]
    mixed = padded(parts, WORDS.special("pad"))
    assert mixed.ids.shape == (6, LAYOUT.length)
    counts = [layout.length - layout.prefix for layout in (LAYOUT, IMAGE)]
    expected = sum(count * built.loss(part) for count, part in zip(counts, parts, strict=True)) / sum(counts)
    assert built.loss(mixed).item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(built.surprise(mixed)[:3].sum(1), built.surprise(parts[0]).sum(1), atol=1e-5)


def test_the_share_of_padding_is_that_of_the_card():
    """Lengths of tasks as the paper's sizes make them, mixed uniformly."""
    lengths = [320, 1344, 1280, 1960, 2880]
    mixed = padded([Batch(torch.ones(1, n).long(), torch.zeros(1, n).long(), 1) for n in lengths], pad=0)
    assert mixed.lengths.tolist() == mixed.ids.sum(1).tolist() == lengths
    assert 1 - mixed.lengths.sum().item() / mixed.ids.numel() == pytest.approx(0.459, abs=5e-4)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([Phase(0.5, {"a": 1.0})], r"phases end at \[0\.5\]"),
        ([Phase(0.5, {"a": 1.0}), Phase(0.5, {"a": 1.0}), Phase(1.0, {"a": 1.0})], "growing shares"),
        ([Phase(1.0, {"a": 0.0})], "expected some above 0"),
        ([Phase(1.0, {"a": 1.0, "b": -1.0})], "none below"),
    ],
)
def test_wrong_phases_are_named(phases, message):
    with pytest.raises(ValueError, match=message):
        Alternation(phases)
