"""Two whole training steps of TencentARC/SEED-Voken's video tokenizer, beside ours (revision b9a17ea).

Its `VQModel.training_step` was run as it is, with Adam as it configures it, on the weights and clips of
`seed_voken.formula` and `wave`: 32 channels, one block a level, 10 bits, clips of 5 frames of 16 pixels, its
discriminator of patches 16 channels wide, LPIPS with weights of the formula. Its annealing is on
(`codebook_enlarge_ratio` 2), the other settings are those of ucf101_lfqfan_128_L.yaml. In ours the two networks are
those of `seed_voken_losses`; pixels are from 0 to 1, so their absolute difference counts twice.

What differs by design: ours has one logit for each clip, so that its hinge is that of the clips' mean logits, without a
factor of 1/2, and LeCam compares the mean logit of a batch with averages to which it does not belong yet. So the step
with the softplus is SEED-Voken's `non_saturate`, which is a clip's there too (the attribute that its constructor
misspells was corrected, and LeCam's weight was 0). The hinge and LeCam, its released settings, are compared patch by
patch.

Both ran in float64. In float32, SEED-Voken's losses differ from these by up to 5e-6 and its gradients by up to 6e-3, as
its softmax over codes, with a temperature of 0.01, is right to 4e-4 only.
"""

from types import SimpleNamespace

import pytest
import torch

from lightning_modules.magvit2.weights import load_seed_voken
from lightning_modules.video_tokens.adversarial import lecam
from lightning_modules.video_tokens.causal_training import CausalTraining
from tests.magvit2.seed_voken import summed, wave, weights
from tests.magvit2.seed_voken_losses import Lpips, Patches

CLOSE = 1e-5  # relative
SIZES = {"width": 32, "multipliers": (1, 2, 2), "blocks": 1}
STEPS = [
    {
        "reconstruction": 0.6628415683610648,
        "perceptual": 0.15105698289949743,
        "commitment": 0.1417407450358247,
        "entropy": -0.6001778246577368,
        "adversarial": 0.19831591117567604,
        "discriminator": 1.415928113991732,
        "gradient tokenizer.encoder.stem": 103.24967330748686,
        "gradient tokenizer.encoder.head": 13.09245712032407,
        "gradient tokenizer.decoder.adaptive.0.gamma": -0.0006946624585489481,
        "gradient tokenizer.decoder.head": -1.6488659107237353,
        "gradient tokenizer.decoder.grow.0.conv": -0.010839245175060526,
        "gradient discriminator.conv0": 0.08032532800512476,
        "gradient discriminator.norm1": -0.05942862769408188,
        "gradient discriminator.conv4": 15.230937442711618,
        "after tokenizer.encoder.stem": 0.17903933711376124,
        "after tokenizer.encoder.head": -0.22539770238114437,
        "after tokenizer.decoder.adaptive.0.gamma": 0.8646553744018137,
        "after tokenizer.decoder.head": -0.08948964371599458,
        "after tokenizer.decoder.grow.0.conv": 0.107368864531786,
        "after discriminator.conv0": 0.30260014341665614,
        "after discriminator.norm1": 32.651477381451244,
        "after discriminator.conv4": -0.1351858354003755,
    },
    {
        "reconstruction": 0.6557486064273673,
        "perceptual": 0.15588605644619993,
        "commitment": 0.1515466359077296,
        "entropy": -0.7016470918065069,
        "adversarial": 0.22239842145010566,
        "discriminator": 1.193951425111045,
        "gradient tokenizer.encoder.stem": 7.77704257748729,
        "gradient tokenizer.encoder.head": 2.5229010994363055,
        "gradient tokenizer.decoder.adaptive.0.gamma": 0.0023381448095046537,
        "gradient tokenizer.decoder.head": 4.76636301281352,
        "gradient tokenizer.decoder.grow.0.conv": 0.0379736795596452,
        "gradient discriminator.conv0": -2.052623782608647,
        "gradient discriminator.norm1": -0.0853873647444342,
        "gradient discriminator.conv4": 19.17092122065646,
        "after tokenizer.encoder.stem": 0.17584628732332147,
        "after tokenizer.encoder.head": -0.2256751936145838,
        "after tokenizer.decoder.adaptive.0.gamma": 0.8649487695055185,
        "after tokenizer.decoder.head": -0.09236312783130293,
        "after tokenizer.decoder.grow.0.conv": 0.006389435869159882,
        "after discriminator.conv0": 0.3040771430409768,
        "after discriminator.norm1": 32.65157215660711,
        "after discriminator.conv4": -0.1571608787798817,
    },
]
HINGE = {
    "hinge": 1.029093666326925,
    "discriminator": 1.0311844035705828,
    "discriminator.conv0": 0.05420288600919981,
    "discriminator.norm1": -0.057179387143455294,
    "discriminator.conv4": 14.154626591119277,
}


def training() -> CausalTraining:
    """Ours, with SEED-Voken's settings and networks."""
    tokenizer = {"frames": 5, "size": 16, "codebook_size": 2**10, "halve_time": (False, True), "pooled_norm": True,
                 "drop_second": True, "quantiser": {"eps": 1e-5}, **SIZES}  # fmt: skip
    built = CausalTraining(
        tokenizer=tokenizer, discriminator={"width": 1, "multipliers": (1,)}, reconstruction=2.0, pixels="absolute",
        adversarial=0.3, perceptual=1.0, r1=0.0, entropy_start=3.0, entropy_steps=2000, pixel_scale=1.0,
    )  # fmt: skip
    load_seed_voken(built.tokenizer, weights(video=True, bits=10, **SIZES), averages=False)
    built.discriminator, built.perception = Patches(16), Lpips()
    return built.double().train()


def clip(step: int) -> torch.Tensor:
    """The clips of a step, pixels from 0 to 1."""
    return (wave(2, 3, 5, 16, 16, shift=0.7 * step).double() + 1) / 2


def test_two_steps_of_training_are_seed_vokens():
    built, seen = training(), []
    built.log_terms = seen.append
    optimizer = torch.optim.AdamW(built.parameter_groups(), lr=1e-4, betas=(0.5, 0.9), weight_decay=0.0)
    for step, expected in enumerate(STEPS):
        built._trainer = SimpleNamespace(global_step=step)
        optimizer.zero_grad()
        built.training_step({"video": clip(step)}).backward()
        optimizer.step()
        found = {name.removeprefix("pretrain/"): term.item() for name, term in seen[-1].items()}
        own = dict(built.named_parameters())
        for name in expected.keys() - found.keys():
            what, _, parameter = name.partition(" ")
            value = own[f"{parameter}.weight"]
            found[name] = summed(value.grad if what == "gradient" else value)
        assert found == pytest.approx(expected, rel=CLOSE)


def test_the_released_discriminators_losses_are_those_of_single_patches():
    """LeCam's averages were 0.05 and -0.1, and the logits of the step are part of them there before they are used."""
    built = training()
    built.game, built.discriminator.single = "hinge", True
    video = clip(0)
    drawn = built.tokenizer(video)[0].detach()
    hinge = built.discriminator_terms(video, drawn)["discriminator"] / 2
    logits = built.discriminator(video), built.discriminator(drawn)
    averages = [0.999 * old + 0.001 * x.detach().mean() for old, x in zip((0.05, -0.1), logits, strict=True)]
    loss = hinge + 0.05 * torch.stack([lecam(*pair, *averages) for pair in zip(*logits, strict=True)]).mean()
    loss.backward()
    found = {"hinge": hinge.item(), "discriminator": loss.item()}
    for name in HINGE.keys() - found.keys():
        found[name] = summed(getattr(built.discriminator, name.rpartition(".")[2]).weight.grad)
    assert found == pytest.approx(HINGE, rel=CLOSE)
