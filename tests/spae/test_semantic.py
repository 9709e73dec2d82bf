"""What words fit a picture: prompt templates, scales, candidates, the loss and its dynamic weight."""

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPModel

from lightning_modules.layers.clip import make_clip
from lightning_modules.spae import semantic
from lightning_modules.spae.clip import clip_tokenizer
from lightning_modules.spae.semantic import (
    Fitting,
    dynamic,
    guidance,
    relative,
    semantic_loss,
    template_ids,
    text_features,
    word_features,
)
from lightning_modules.spae.templates import IMAGENET, TEMPLATES, WORLD
from lightning_modules.spae.words import WordTable

SIDE = {"image_size": 16, "patch_size": 8}
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
WORDS = ["red", "circle", "apple"]


def clip() -> CLIPModel:
    torch.manual_seed(0)
    text = {**SIZES, "vocab_size": len(clip_tokenizer()), "max_position_embeddings": 16}
    return make_clip(vision={**SIZES, **SIDE}, text=text, projection_dim=8)


def fitting(network=None, templates=WORLD):
    return Fitting(network or clip(), clip_tokenizer, templates=templates, mean=[0.5] * 3, std=[0.5] * 3)


def table(words=6, dim=4):
    torch.manual_seed(0)
    return WordTable(words=[str(n) for n in range(words)], ids=range(words), dim=dim, source="random")


def test_imagenets_eighty_templates_have_a_place_for_a_word():
    assert len(set(IMAGENET)) == 80 and all(
        template.count("{}") == 1 for each in TEMPLATES.values() for template in each
    )


def test_a_words_features_are_the_mean_over_the_templates_of_features_of_length_one():
    network, tokenizer = clip(), clip_tokenizer()
    each = [text_features(network, template_ids(tokenizer, WORDS, template, 16)) for template in WORLD]
    expected = F.normalize(torch.stack(each).mean(0), dim=-1)
    assert torch.allclose(word_features(network, tokenizer, WORDS, WORLD), expected, atol=1e-5)


def test_a_text_is_read_at_its_end_so_padding_changes_nothing():
    network, tokenizer = clip(), clip_tokenizer()
    short, long = (torch.from_numpy(tokenizer(["a red circle"], length)[0]) for length in (5, 12))
    assert torch.allclose(text_features(network, short), text_features(network, long), atol=1e-5)


def test_texts_have_the_features_that_transformers_gives_them():
    network, tokenizer = clip().eval(), clip_tokenizer()
    ids = torch.from_numpy(tokenizer(["a red circle", "small"], 8)[0])
    network.text_model.eos_token_id = tokenizer.end_id
    expected = F.normalize(network.text_projection(network.text_model(input_ids=ids).pooler_output), dim=-1)
    assert torch.allclose(text_features(network, ids), expected, atol=1e-6)


def test_similarities_are_cosines_and_those_of_a_clip_the_mean_over_its_frames():
    fits, video = fitting(), torch.rand(2, 3, 4, 16, 16)
    found = fits.similarity(video, WORDS)
    assert found.shape == (2, 3) and found.abs().max() <= 1 + 1e-5
    each = torch.stack([fits.similarity(video[:, :, [frame]], WORDS) for frame in range(4)])
    assert torch.allclose(found, each.mean(0), atol=1e-5)


def test_pictures_of_another_size_are_scaled_to_what_clip_reads():
    assert fitting().similarity(torch.rand(2, 3, 1, 32, 32), WORDS).shape == (2, 3)


def test_words_are_read_once_and_anew_when_the_network_has_other_weights():
    fits = fitting()
    before = fits.words(WORDS)
    assert fits.words(WORDS) is before
    with torch.no_grad():
        fits.network.text_projection.weight.neg_()
    assert fits.words(WORDS) is before
    fits.forget()
    assert torch.allclose(fits.words(WORDS), -before, atol=1e-5)
    assert len(fits.words(WORDS[:2])) == 2


def test_a_word_that_clips_tokenizer_does_not_know_is_refused():
    with pytest.raises(ValueError, match=r"does not know 'zebra' in 'a \{\}'"):
        template_ids(clip_tokenizer(), ["red", "zebra"], "a {}", 16)


def test_relative_similarities_go_from_nought_to_one_for_each_picture():
    found = relative(torch.tensor([[0.1, 0.2, 0.3], [-1.0, 1.0, 0.0]]))
    assert torch.allclose(found, torch.tensor([[0.0, 0.5, 1.0], [0.0, 1.0, 0.5]]), atol=1e-6)
    assert torch.equal(relative(torch.ones(1, 3)), torch.zeros(1, 3))


def test_the_loss_is_the_cross_entropy_of_a_softmax_of_minus_squared_distances():
    words, asked = table(), torch.randn(2, 3, 4)
    candidates = torch.tensor([[True, False, False, True, False, False], [False, True] + [False] * 4])
    shares = (-torch.cdist(asked, words.embeddings).square()).log_softmax(-1)
    expected = -(shares[0, :, [0, 3]].mean() + shares[1, :, 1].mean()) / 2
    assert semantic_loss(asked, words, candidates).item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_loss_draws_latents_to_a_candidate_and_leaves_the_table_alone():
    words = WordTable(words=list("abcdef"), ids=range(6), dim=4, source="learned")
    asked = torch.randn(1, 1, 4, requires_grad=True)
    candidates = F.one_hot(torch.tensor([2]), 6).bool()
    semantic_loss(asked, words, candidates).backward()
    assert words.embeddings.grad is None
    for _ in range(200):
        asked = (asked - 0.1 * torch.autograd.grad(semantic_loss(asked, words, candidates), asked)[0]).detach()
        asked.requires_grad_()
    assert words.nearest(asked).item() == 2


def test_thresholds_are_those_of_the_first_layers_and_the_best_word_is_always_a_candidate():
    words, fits = table(), relative(torch.randn(2, 6))
    asked = [torch.randn(2, tokens, 4) for tokens in (1, 4, 16)]
    best = F.one_hot(fits.argmax(1), 6).bool()
    expected = semantic_loss(asked[0], words, best) + semantic_loss(asked[1], words, fits >= 0.0)
    assert guidance(asked, words, fits, [1.0, 0.0]).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_dynamic_weight_makes_both_losses_equal_without_a_gradient():
    appearance, semantic = torch.tensor(3.0, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    weight = dynamic(appearance, semantic)
    assert weight.item() == pytest.approx(6) and not weight.requires_grad
    assert torch.isfinite(dynamic(appearance, torch.tensor(0.0)))


def test_the_large_clip_can_be_built_without_its_files():
    with torch.device("meta"):
        built = make_clip(hub="openai/clip-vit-large-patch14")
    assert sum(parameter.numel() for parameter in built.parameters()) == 427_616_513
    assert built.config.vision_config.patch_size == 14 and built.config.projection_dim == 768


def both(asked, parts, monkeypatch):
    """The loss and the latents' gradient, with distances of so many pictures at a time."""
    words = table(words=6, dim=4)
    monkeypatch.setattr(semantic, "LOGITS", parts * asked.shape[1] * len(words))
    latents = asked.clone().requires_grad_()
    loss = semantic_loss(latents, words, torch.arange(30).view(5, 6) % 4 == 0)
    loss.backward()
    return loss.detach(), latents.grad


def test_the_loss_in_parts_is_that_of_all_at_once(monkeypatch):
    asked = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    seen, whole = [], semantic._normaliser
    monkeypatch.setattr(semantic, "_normaliser", lambda x, *rest: seen.append(len(x)) or whole(x, *rest))
    loss, gradient = both(asked, 5, monkeypatch)
    assert seen == [5]  # once, nothing is computed again
    for parts, expected in ((2, [2, 2, 1]), (0, [1] * 5)):
        seen.clear()
        found = both(asked, parts, monkeypatch)
        assert sorted(seen) == sorted(expected * 2)  # again in the backward pass
        torch.testing.assert_close(found, (loss, gradient), rtol=1e-6, atol=1e-7)
