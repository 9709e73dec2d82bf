"""Sub-tokens: how tokens are divided, embedded and predicted, and what guidance and COMMIT make of them."""

import pytest
import torch

from lightning_modules.magvit2.module import Magvit2, OpenMagvit2
from lightning_modules.magvit2.transformer import FactorisedBert
from lightning_modules.video_tokens.tasks import TASKS
from lightning_modules.video_tokens.training import TokensRecipe

TOKENIZER = {"frames": 5, "size": 16, "width": 4, "multipliers": (1, 1, 1), "blocks": 1, "halve_time": (False, True),
             "codebook_size": 16, "norm_groups": 2}  # fmt: skip
NETWORK = {"layers": 1, "hidden_size": 16, "mlp_dim": 16, "heads": 2, "dropout": 0.0, "attention_dropout": 0.0,
           "bits": (1, 3)}  # fmt: skip
LLAMA = {"layers": 1, "factorized_layers": 1, "hidden_size": 16, "heads": 2, "mlp_multiple": 8, "dropout": 0.0,
         "bits": (1, 3)}  # fmt: skip


def module(form=Magvit2, **options):
    torch.manual_seed(0)
    tasks = ["fp", "cg"] if form is Magvit2 else ["cg"]
    options = {"num_classes": 3, "tasks": tasks, "judged_tasks": tasks, "class_drop": 0.1, **options}
    built = form(tokenizer=TOKENIZER, network=NETWORK if form is Magvit2 else LLAMA, **options)
    with torch.no_grad():
        for parameter in built.network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return built


def batch(rows=4):
    draw = torch.Generator().manual_seed(1)
    video = torch.randint(0, 256, (rows, 3, 5, 16, 16), generator=draw).to(torch.uint8)
    return {"video": video, "labels": torch.arange(rows) % 3, "rows": torch.arange(rows)}


def test_two_small_heads_have_256_times_fewer_numbers_than_one():
    def heads(bits):
        with torch.device("meta"):
            built = FactorisedBert(bits=bits, extra=20, length=10, layers=1, hidden_size=1024, mlp_dim=16, heads=16)
        return built.head_parameters

    assert (heads([18]), heads([9, 9])) == (268_435_456, 1_048_576)


def test_sub_tokens_are_groups_of_bits_the_least_significant_first():
    built = module()
    tokens = torch.arange(16)
    first, second = built.subtokens(tokens)
    assert torch.equal(first, tokens & 1) and torch.equal(second, tokens >> 1)
    assert torch.equal(built.joined([first, second]), tokens)


def test_a_code_is_the_sum_of_its_sub_tokens_vectors_and_these_are_the_heads():
    network = module().network
    tokens = torch.tensor([[5, 16, 17]])  # sub-tokens 1 and 2, and two that are no codes
    first, second = (part.weight for part in network.parts)
    expected = torch.stack([first[1] + second[2], network.words.weight[0], network.words.weight[1]])
    assert torch.allclose(network.embed(tokens)[0], expected)
    x = torch.randn(1, 1, 16)
    assert torch.allclose(network.answers(x), torch.cat([x @ first.T, x @ second.T], -1) + network.bias)


def test_both_sub_tokens_of_a_place_are_masked_together():
    built, shown = module().train(), []
    embed = built.network.embed
    built.network.embed = lambda tokens: shown.append(tokens) or embed(tokens)
    built.loss(batch(), "cg")
    tokens, _ = built.tokens_of(batch(), "cg")
    visible = shown[0][:, -built.tokens :]
    mask = built.special(-1)
    assert ((visible == tokens) | (visible == mask)).all() and (visible == mask).any()


def test_the_loss_is_the_sum_over_sub_tokens():
    built = module(label_smoothing=0.0, tasks=["unc"]).eval()
    tokens, _ = built.tokens_of(batch(), "unc")
    torch.manual_seed(5)
    found = built.loss(batch(), "unc")
    torch.manual_seed(5)
    ratio = torch.cos(torch.pi / 2 * torch.rand(1))
    scores = torch.rand(tokens.shape)
    hidden = scores <= scores.sort(1).values[:, int(built.tokens * ratio) - 1, None]
    shown = torch.cat([built.before(TASKS["unc"], batch()["labels"], None), tokens.masked_fill(hidden, 20)], 1)
    first, second = built.network(shown)[:, -built.tokens :].split([2, 8], -1)
    chances = first.log_softmax(-1).gather(2, (tokens & 1)[..., None]) + second.log_softmax(-1).gather(
        2, (tokens >> 1)[..., None]
    )
    assert found.item() == pytest.approx(-chances.mean().item(), rel=1e-5)


@pytest.mark.parametrize("form", [Magvit2, OpenMagvit2])
def test_the_class_is_left_out_in_a_tenth_of_the_training_alone(form):
    built, labels = module(form), torch.zeros(10_000, dtype=torch.long)
    torch.manual_seed(0)
    assert (built.train().dropped(labels) == 3).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(built.eval().dropped(labels), labels)


@pytest.mark.parametrize("form", [Magvit2, OpenMagvit2])
def test_guidance_moves_what_is_drawn_and_only_where_a_class_is_told(form):
    built, video, labels = module(form).eval(), torch.zeros(4, 3, 5, 16, 16), torch.tensor([0, 1, 2, 0])
    plain, guided = (built.generate(video, labels, "cg", 1, guidance=g) for g in (0.0, 20.0))
    assert plain.shape == (4, 48) and plain.max() < 16 and not torch.equal(plain, guided)
    other = built.generate(video, labels.flip(0), "unc", 1, guidance=20.0)
    assert torch.equal(other, built.generate(video, labels, "unc", 1))


def test_frame_prediction_looks_at_nothing_but_what_is_given():
    built, video = module().eval(), torch.rand(2, 3, 5, 16, 16)
    other = video.clone()
    other[:, :, 1:] = 0.5
    labels = torch.zeros(2, dtype=torch.long)
    assert torch.equal(built.generate(video, labels, "fp", 3), built.generate(other, labels, "fp", 3))


@pytest.mark.parametrize("form", [Magvit2, OpenMagvit2])
def test_all_that_the_transformer_has_is_trained(form):
    built = module(form).train()
    for step in range(len(built.tasks)):
        built.training_step(batch(), step).backward()
    unused = [name for name, p in built.network.named_parameters() if p.grad is None]
    assert not unused and all(p.grad is None for p in built.tokenizer.parameters())
    assert sum(len(group["params"]) for group in built.parameter_groups()) == len(list(built.network.parameters()))
    assert built.recipe_form is TokensRecipe


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        (Magvit2, {"network": {**NETWORK, "bits": (2, 3)}}, r"network\.bits make 32 tokens, but the tokenizer has 16"),
        (OpenMagvit2, {"network": {**LLAMA, "bits": (2, 3)}}, r"network\.bits make 32 tokens"),
        (OpenMagvit2, {"tasks": ["fp"]}, r"task \('fp'\) must be one of cg, unc"),
    ],
)
def test_wrong_settings_are_named(form, options, message):
    default = {"tokenizer": TOKENIZER, "network": NETWORK, "num_classes": 3, "tasks": ["cg"], "judged_tasks": ["cg"]}
    with pytest.raises(ValueError, match=message):
        form(**{**default, **options})
