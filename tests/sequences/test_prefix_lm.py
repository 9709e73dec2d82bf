"""The prefix language model: what sees what, cached steps, constrained ids, chunks, guidance, features, export."""

import pytest
import torch

from lightning_modules.sequences.layout import arrange
from lightning_modules.sequences.prefix_lm import PrefixLM, drawn, prefix_mask
from lightning_modules.sequences.vocabulary import Vocabulary

WORDS = Vocabulary(8, 2, 4, prompts=("task",))
LAYOUT = arrange(WORDS, prompt="task", visual_places=6, text=3, visual=2, video=6, sound=4)
SMALL = {"vocabulary": len(WORDS), "places": 10, "hidden_size": 16, "layers": 2, "heads": 2, "mlp_dim": 24}


def network(**options) -> PrefixLM:
    torch.manual_seed(0)
    return PrefixLM(**{**SMALL, **options}).eval()


def tokens(rows=3, text="pad"):
    draw = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 4, (rows, 2, 2), generator=draw)
    return {
        "text": torch.full((rows, 3), WORDS.special(text)),
        "visual": WORDS.visual_ids(torch.randint(0, 8, (rows, 2), generator=draw)),
        "video": WORDS.visual_ids(torch.randint(0, 8, (rows, 6), generator=draw)),
        "sound": WORDS.audio_ids(codes),
    }


def test_the_prefix_is_seen_by_all_and_the_rest_by_what_follows():
    mask = prefix_mask(3, 5)[0, 0]
    assert torch.equal(mask, torch.ones(5, 5).tril().bool() | (torch.arange(5) < 3))
    each = prefix_mask(torch.tensor([0, 3]), 5)[:, 0]
    assert torch.equal(each[0], torch.ones(5, 5).tril().bool()) and torch.equal(each[1], mask)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_what_is_given_is_read_in_both_directions_and_what_is_written_is_not(bidirectional):
    built, batch = network(bidirectional=bidirectional), LAYOUT.batch(tokens())
    given, written = batch.ids.clone(), batch.ids.clone()
    given[:, LAYOUT.prefix - 2] = WORDS.special("pad")
    written[:, LAYOUT.prefix + 3] = WORDS.special("pad")
    with torch.no_grad():
        before = built.read(batch)
        change = [(built.read(batch._replace(ids=ids)) - before).abs().amax((0, 2)) > 0 for ids in (given, written)]
    assert change[0][0].item() is bidirectional and change[0][LAYOUT.prefix - 2 :].all()
    assert change[1].tolist() == [False] * (LAYOUT.prefix + 3) + [True] * (LAYOUT.length - LAYOUT.prefix - 3)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_kept_keys_and_values_write_what_the_whole_sequence_says(bidirectional):
    built, given = network(bidirectional=bidirectional), LAYOUT.batch(tokens(), whole=False)
    found = built.generate(given, LAYOUT.slots, LAYOUT.places, generator=torch.Generator(), temperature=0.0)
    whole = LAYOUT.batch(tokens() | LAYOUT.written(found))
    with torch.no_grad():
        logits = built.logits(whole)[:, LAYOUT.prefix - 1 : -1]
    for place, slot in enumerate(LAYOUT.slots):
        assert torch.equal(logits[:, place, slot].argmax(-1) + slot.start, found[:, place])
    assert torch.equal(whole.ids[:, LAYOUT.prefix :], found)


def test_only_ids_of_a_places_slot_are_written_and_a_seed_decides_which():
    built, given = network(), LAYOUT.batch(tokens(64), whole=False)
    runs = [
        built.generate(
            given, LAYOUT.slots, LAYOUT.places, generator=torch.Generator().manual_seed(seed), temperature=2.0
        )
        for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    for place, slot in enumerate(LAYOUT.slots):
        ids = runs[0][:, place]
        assert ids.min() >= slot.start and ids.max() < slot.stop
        assert len(ids.unique()) > 1 or slot.stop - slot.start == 1


def test_the_loss_counts_what_is_written_and_a_chunk_changes_nothing():
    built, batch = network(), LAYOUT.batch(tokens())
    logits = built.logits(batch)[:, LAYOUT.prefix - 1 : -1]
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.ids[:, LAYOUT.prefix :], reduction="none")
    assert torch.allclose(built.surprise(batch), each, atol=1e-6)
    gradients = []
    for chunk in (8192, 7):
        built.chunk = chunk
        built.zero_grad()
        loss = built.loss(batch)
        loss.backward()
        assert loss.item() == pytest.approx(each.mean().item(), rel=1e-5)
        gradients.append(built.head.weight.grad.clone())
    assert torch.allclose(*gradients, atol=1e-6)


def test_guidance_moves_away_from_what_is_left_out():
    built = network()
    with torch.no_grad():
        built.head.weight.mul_(50)  # so that guidance can change what is most probable
    given, without = LAYOUT.batch(tokens(text="pad"), whole=False), LAYOUT.batch(tokens(text="eos"), whole=False)
    options = {"generator": torch.Generator(), "temperature": 0.0}
    plain = built.generate(given, LAYOUT.slots, LAYOUT.places, **options)
    same = built.generate(given, LAYOUT.slots, LAYOUT.places, guidance=3.0, without=given, **options)
    guided = built.generate(given, LAYOUT.slots, LAYOUT.places, guidance=30.0, without=without, **options)
    assert torch.equal(plain, same) and not torch.equal(plain, guided)
    with pytest.raises(ValueError, match=r"guidance is 1\.0, but nothing is left out"):
        built.generate(given, LAYOUT.slots, LAYOUT.places, guidance=1.0, **options)


def test_features_of_texts_stand_where_the_id_of_text_does():
    built = network(text_dim=5)
    features = torch.rand(3, 3, 5, generator=torch.Generator().manual_seed(2))
    told, dropped = tokens(text="text"), tokens(text="pad")
    with torch.no_grad():
        one, other = (built.read(LAYOUT.batch(told, features=x)) for x in (features, features + 1))
        none = [built.read(LAYOUT.batch(dropped, features=x)) for x in (features, None)]
    assert not torch.allclose(one, other) and torch.equal(*none)
    with pytest.raises(ValueError, match="text_dim is 0"):
        network().read(LAYOUT.batch(told, features=features))


def test_the_most_probable_ids_alone_are_drawn_from():
    logits = torch.tensor([[0.0, 3.0, 2.0, 1.0]]).expand(500, 4)
    found = drawn(logits, 5.0, 2, torch.Generator().manual_seed(0))
    assert set(found.tolist()) == {1, 2}
    assert set(drawn(logits, 0.0, 0, torch.Generator()).tolist()) == {1}


def test_a_llama_of_transformers_computes_the_same():
    built, batch = network(), LAYOUT.batch(tokens())
    exported = built.to_transformers()
    with torch.no_grad():
        found = exported(inputs_embeds=built.embed(batch), attention_mask=built.mask(batch)).logits
        assert torch.allclose(found, built.logits(batch), atol=1e-5)


def test_a_width_that_heads_cannot_share_is_refused():
    with pytest.raises(ValueError, match=r"hidden_size \(18\) must be a multiple of 2 x heads \(2\)"):
        network(hidden_size=18)
