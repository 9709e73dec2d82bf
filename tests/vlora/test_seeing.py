"""Texts are read and written with pictures in the weights, in the input, or nowhere."""

import copy

import pytest
import torch

from lightning_modules.vlora.baselines import Projector, Queries
from lightning_modules.vlora.seeing import IGNORED, Seeing
from tests.vlora.test_generator import generator, language, learn

SEEN = {"visual_dim": 12, "hidden_size": 32}
BRIDGES = ["weights", "projector", "queries", "blind"]
END, PAD = 2, 0


def seeing(kind: str) -> Seeing:
    """A small model whose pictures matter."""
    model = language()
    if kind == "weights":
        bridge = generator(model)
        learn(bridge)
        for decoder in bridge.decoders:  # a fresh generator hardly tells pictures apart
            torch.nn.init.normal_(decoder.head.weight)
    elif kind == "projector":
        bridge = Projector(**SEEN)
    elif kind == "queries":
        bridge = Queries(**SEEN, patches=5, tokens=2, dim=16, depth=1, heads=2)
    else:
        bridge = None
    return Seeing(model, bridge).eval()


def batch(rows: int = 3, length: int = 6) -> tuple:
    """Texts, masks, features, and whether there is a picture."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 50, (rows, length), generator=draw)
    return ids, torch.ones_like(ids).bool(), 50 * torch.randn(rows, 5, 12, generator=draw), torch.ones(rows).bool()


def padded(ids, mask, left: bool):
    """The same texts with two places of padding."""
    own, seen = torch.full_like(ids[:, :2], PAD), torch.zeros_like(mask[:, :2])
    pair = lambda x, y: [x, y] if left else [y, x]  # noqa: E731
    return torch.cat(pair(own, ids), 1), torch.cat(pair(seen, mask), 1)


@pytest.mark.parametrize("kind", BRIDGES)
@pytest.mark.parametrize("left", [True, False])
@torch.no_grad()
def test_padding_changes_nothing(kind, left):
    model, (ids, mask, features, has_image) = seeing(kind), batch()
    expected = model(ids, mask, features, has_image)
    found = model(*padded(ids, mask, left), features, has_image)
    torch.testing.assert_close(found[:, 2:] if left else found[:, :-2], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", BRIDGES)
@torch.no_grad()
def test_rows_without_a_picture_read_as_a_text_alone(kind):
    model, (ids, mask, features, has_image) = seeing(kind), batch()
    has_image[1] = False
    found = model(ids, mask, features, has_image)
    alone = Seeing(language(), None).eval()(ids, mask, features, has_image)
    torch.testing.assert_close(found[1], alone[1], rtol=1e-4, atol=1e-5)
    assert torch.allclose(found[0], alone[0], atol=1e-4) == (kind == "blind")


@pytest.mark.parametrize("kind", BRIDGES)
@torch.no_grad()
def test_the_cache_writes_what_reading_again_gives(kind):
    model, (ids, mask, features, has_image) = seeing(kind), batch()
    prompts, seen = padded(ids, mask, left=True)
    found = model.write(prompts, seen, features, has_image, most=4, end=-1, pad=PAD)
    for _ in range(4):
        chosen = model(ids, mask, features, has_image)[:, -1].argmax(1)
        ids, mask = torch.cat([ids, chosen[:, None]], 1), torch.cat([mask, mask[:, :1]], 1)
    assert torch.equal(found, ids[:, -4:])


@torch.no_grad()
def test_weights_can_be_merged_while_one_picture_is_written_about():
    model, (ids, mask, features, has_image) = seeing("weights"), batch(rows=1)
    before = copy.deepcopy(model.language.state_dict())
    options = {"most": 4, "end": -1, "pad": PAD}
    found = model.write(ids, mask, features, has_image, merge=True, **options)
    assert torch.equal(found, model.write(ids, mask, features, has_image, **options))
    assert all(torch.equal(x, before[name]) for name, x in model.language.state_dict().items())
    assert torch.equal(model.language(ids).logits, language()(ids).logits), "nothing is added any more"
    with pytest.raises(ValueError, match="of 3 pictures, expected 1"):
        model.write(*(batch()[n] for n in range(4)), merge=True, **options)


def test_a_row_that_has_ended_is_padded():
    model, (ids, mask, features, has_image) = seeing("weights"), batch()
    first = model.write(ids, mask, features, has_image, most=1, end=-1, pad=PAD)[0, 0].item()
    found = model.write(ids, mask, features, has_image, most=4, end=first, pad=PAD)
    assert found[0].tolist() == [first] + [PAD] * (found.shape[1] - 1)


def test_prompts_padded_on_the_right_are_refused():
    model, (ids, mask, features, has_image) = seeing("blind"), batch()
    with pytest.raises(ValueError, match="pad prompts on the left"):
        model.write(*padded(ids, mask, left=False), features, has_image, most=2, end=END, pad=PAD)


def test_labels_say_what_is_learned():
    model, (ids, mask, features, has_image) = seeing("weights"), batch()
    labels = ids.clone()
    labels[:, :4] = IGNORED
    found = model.loss(ids, mask, labels, features, has_image)
    logits = model(ids, mask, features, has_image)[:, 3:5].log_softmax(2)
    torch.testing.assert_close(found, -logits.gather(2, ids[:, 4:, None]).mean())
    with pytest.raises(ValueError, match="no token of the batch has a label"):
        model.loss(ids, mask, torch.full_like(ids, IGNORED), features, has_image)


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model, (ids, mask, features, has_image) = seeing("weights"), batch()
        model.language.requires_grad_(False).train()
        if checkpointing:
            model.language.activation_checkpointing_enable({"use_reentrant": False})
        model.loss(ids, mask, ids, features, has_image).backward()
        gradients.append({name: p.grad for name, p in model.bridge.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)


def test_at_first_only_the_learned_factors_have_a_gradient():
    model, (ids, mask, features, has_image) = Seeing(language(), generator(language())), batch()
    model.loss(ids, mask, ids, features, has_image).backward()
    assert all(factor.grad.abs().sum() > 0 for factor in model.bridge.learned.values())
    assert all(p.grad.abs().sum() == 0 for p in model.bridge.decoders.parameters())


@torch.no_grad()
def test_a_copied_model_has_additions_of_its_own():
    model, (ids, mask, features, has_image) = seeing("weights"), batch()
    expected, other = model(ids, mask, features, has_image), copy.deepcopy(model)
    model.injection.use(None)
    torch.testing.assert_close(other(ids, mask, features, has_image), expected)
    alone = model.language(ids).logits
    torch.testing.assert_close(alone, language()(ids).logits)
