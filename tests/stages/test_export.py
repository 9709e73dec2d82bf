"""Trained networks as folders of transformers: equal outputs, a processor and a card, or the reason why not."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hydra.utils import instantiate
from PIL import Image
from safetensors.torch import save_file

from lightning_modules.files import sha256, write_json
from lightning_modules.predictors import centre_share
from lightning_modules.spae.semantic import picture_features, text_features
from stages import export
from stages.composing import compose
from stages.plan import load_plan

PLAN = load_plan("tiny")
ROOT = Path(__file__).parents[2]
STEMS = {path.parent.name for path in ROOT.glob("lightning_modules/*/facts.yaml")}
SYSTEMS = {row.system: arm for arm, row in PLAN.pretrain.items() if row.paper in STEMS}
LANGUAGES = {"spae_language", "caption_language", "mm_gem"}
SHOWN_ELSEWHERE = {"vit_bert", "visual_parsing"}  # their own tests compare what is exported with ours
EXPORTED = {
    "maskalign", "masked_autoencoder", "classifier", "clip_vip", "spae_clip", "caption_tower", *LANGUAGES,
    *SHOWN_ELSEWHERE,
}  # fmt: skip
NONE_KNOWN = "no class of transformers is written down for it"
REFUSED = {
    "committees": "no class for a pool of small networks of the family",
    "small_ensembles": "no class for a pool of small networks of the family",
    "unified_t2i_i2t": "without its heads for image codes, codebook and image decoder",
    **dict.fromkeys(
        (
            "image_side",
            "imp",
            "imp_texts",
            "movinet",
            "camvig",
            "camvig_base",
            "camvig_tokenizer",
            "fgla",
            "hd_vila",
            "hd_vila_manipulation",
            "lf_vila",
            "magvit",
            "magvit_tokenizer",
            "magvit2",
            "magvit2_actions",
            "magvit2_ar",
            "magvit2_codebook",
            "magvit2_image",
            "magvit2_targets",
            "magvit2_tokenizer",
            "magvit2_vocabulary",
            "videopoet_audio",
            "videopoet_sr",
            "videopoet_tokenizer",
        ),
        NONE_KNOWN,
    ),
    **dict.fromkeys(("spae", "spae_in_context", "spae_video"), "whose codebook is a pyramid of words"),
    "vlora": "no class of transformers adds weights that are generated for each picture",
    "videopoet": "LlamaForCausalLM knows neither places of a clip nor a prefix",
}


def drawn(block):
    """A network with weights that no initialisation has given it, so that every parameter counts."""
    torch.manual_seed(0)
    module = instantiate(block, _convert_="all").eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim == 1 else 0.1)
    return module


def differs(ours, theirs):
    return (ours - theirs).abs().max().item()


def test_every_system_is_exported_or_says_why():
    assert sorted([*EXPORTED, *REFUSED]) == sorted(SYSTEMS)
    pretrained = {PLAN.pretrain[arm].system for arm, protocol, _ in VITS if protocol is None}
    assert pretrained | {"clip_vip", "spae_clip", "caption_tower", *LANGUAGES, *SHOWN_ELSEWHERE} == EXPORTED, (
        "what the tests below export"
    )


@pytest.mark.parametrize("system", REFUSED)
def test_what_transformers_does_not_have_is_refused_with_the_reason(system):
    row = PLAN.pretrain[SYSTEMS[system]]
    block = compose("tiny", system=row.system, overrides=row.overrides)["system"]["model"]
    with pytest.raises(ValueError, match=REFUSED[system]):
        instantiate(block, _convert_="all").to_transformers()


@pytest.fixture
def project(tmp_path, monkeypatch, prepared):
    """`project(arm)` lays down a seed of an arm with drawn weights, and gives its module."""
    for name in ("lightning_modules", "results", "ideas"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setattr(export, "ROOT", tmp_path)

    def lay(arm, protocol=None, **overrides):
        row, blocks, folder = export.trained(PLAN, arm, protocol)
        seed = folder / "seed-0"
        seed.mkdir(parents=True)
        block = blocks["model"]
        for name, value in overrides.items():
            block[name] = value
        module = drawn(block)
        save_file({name: x.contiguous() for name, x in module.export().items()}, seed / "weights.safetensors")
        write_json(seed / "facts.json", {"weights_sha256": sha256(seed / "weights.safetensors")})
        data = tmp_path / "data/datasets" / row.dataset / "tiny"
        data.parent.mkdir(parents=True, exist_ok=True)
        if not data.exists():
            data.symlink_to(prepared(row.dataset))
        return module

    return lay


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
    export.main()


def pictures(folder, side):
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    stored = [np.asarray(Image.open(folder / f"{number}.png")) for number in range(3)]
    return torch.from_numpy(np.stack(stored).transpose(0, 3, 1, 2).copy())


VITS = [
    ("maskalign", None, "ViTModel"),
    ("maskalign-mae", None, "ViTModel"),
    ("maskalign-teacher", None, "BeitForImageClassification"),
    ("maskalign-world", "finetune", "BeitForImageClassification"),
]


@pytest.mark.parametrize(("arm", "protocol", "kind"), VITS)
def test_the_card_in_the_folder_loads_what_computes_the_same(arm, protocol, kind, project, tmp_path, monkeypatch):
    module, out = project(arm, protocol), tmp_path / "out" / arm
    run(monkeypatch, arm, out, *(["--protocol", protocol] if protocol else []))
    stored = pictures(tmp_path, 32)
    with torch.inference_mode():
        ours = module(stored)
    assert ours.std() > 0.05
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    for number in range(3):
        names = {}
        with torch.inference_mode():
            exec(code.replace("picture.png", str(tmp_path / f"{number}.png")), names)
        assert type(names["model"]) is getattr(transformers, kind)
        found = names["features" if kind == "ViTModel" else "logits"]
        assert differs(ours[number : number + 1], found) < 1e-5
    assert (out / "model.safetensors").is_file() and not list(out.rglob("*.bin"))


def test_an_auto_model_loads_it_too(project, tmp_path, monkeypatch):
    project("maskalign")
    run(monkeypatch, "maskalign", tmp_path / "out")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").model_type == "vit"


def test_the_card_names_paper_claims_data_and_commit(project, tmp_path, monkeypatch):
    project("maskalign")
    run(monkeypatch, "maskalign", tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    for row in json.loads((ROOT / "results/tiny/maskalign/claims.json").read_text()):
        assert f"| {row['id']} |" in text and row["verdict"] in text
    digest = json.loads((tmp_path / "data/datasets/world_graded/tiny/card.json").read_text())["content_sha256"]["train"]
    assert digest[:16] in text and "2211.08887" in text and re.search(r"\| commit \| [0-9a-f]{40}", text)


def test_classifiers_of_the_cls_token_and_probes_are_vits(tmp_path):
    """The BatchNorm of a probe becomes part of its head."""
    blocks = compose("tiny", system="maskalign")["system"]["downstream"]
    stored = pictures(tmp_path, 32)
    for protocol in ("finetune", "probe"):
        module = drawn(blocks[protocol]["model"] | {"pool": "cls"})
        if protocol == "probe":
            module.norm.running_mean.normal_()
            module.norm.running_var.uniform_(0.5, 2)
        model = module.to_transformers().model
        assert type(model) is transformers.ViTForImageClassification
        with torch.inference_mode():
            assert differs(module(stored), model(module.preprocess(stored)).logits) < 1e-5
    with pytest.raises(ValueError, match="its head reads the mean of normalised patches"):
        drawn(blocks["probe"]["model"] | {"pool": "mean"}).to_transformers()


@pytest.mark.parametrize("attention", ["mean", "proxy", "joint"])
def test_a_clip_without_further_proxies_reads_frames_and_texts_as_the_model_does(attention, tmp_path):
    block = compose("tiny", system="clip_vip")["system"]["model"]
    module = drawn(block | {"attention": attention, "num_proxies": 1})
    module.to_transformers().model.save_pretrained(tmp_path)
    model = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    side = model.config.vision_config.image_size
    stored = torch.randint(0, 256, (3, 3, 1, side, side), dtype=torch.uint8)
    words = model.config.text_config.vocab_size
    token_ids = torch.randint(1, words - 1, (3, model.config.text_config.max_position_embeddings))
    token_ids[torch.arange(3), torch.tensor([3, 5, 7])] = words - 1
    with torch.inference_mode():
        found = model(pixel_values=module.preprocess(stored[:, :, 0]), input_ids=token_ids)
        assert differs(module(stored), found.image_embeds) < 1e-5
        assert differs(module.encode_texts(token_ids), found.text_embeds) < 1e-5


def test_a_clip_with_further_proxies_is_refused():
    with pytest.raises(ValueError, match="CLIPModel has no place for the 3 proxies beside CLS"):
        drawn(compose("tiny", system="clip_vip")["system"]["model"] | {"num_proxies": 4}).to_transformers()


def test_a_clip_of_words_is_exported_with_the_tower_of_its_texts(project, tmp_path, monkeypatch):
    module, out = project("spae-clip"), tmp_path / "out"
    run(monkeypatch, "spae-clip", out)
    model, stored = transformers.CLIPModel.from_pretrained(out).eval(), pictures(tmp_path, 32)
    pixels = transformers.AutoImageProcessor.from_pretrained(out)(
        [Image.open(tmp_path / f"{number}.png") for number in range(3)], return_tensors="pt"
    )["pixel_values"]
    token_ids = torch.from_numpy(module.tokenizer(["red", "a blue square", "there is a circle"], 16)[0])
    with torch.inference_mode():
        found = model(pixel_values=pixels, input_ids=token_ids)
        assert (
            differs(picture_features(module.clip, (stored / 255 - module.mean) / module.std), found.image_embeds) < 1e-5
        )
        assert differs(text_features(module.clip, token_ids), found.text_embeds) < 1e-5


def test_the_tower_of_captions_is_exported_as_its_patches_are_read(project, tmp_path, monkeypatch):
    module, out = project("caption-tower"), tmp_path / "out"
    run(monkeypatch, "caption-tower", out)
    stored = pictures(tmp_path, 32)
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    with torch.inference_mode():
        for number, expected in enumerate(module(stored)):
            names = {}
            exec(code.replace("picture.png", str(tmp_path / f"{number}.png")), names)
            assert type(names["model"]) is transformers.CLIPVisionModel
            assert differs(expected, names["features"][0]) < 1e-5


def test_a_language_model_that_embeds_is_exported_with_its_token(project, tmp_path, monkeypatch):
    module, out = project("mm_gem"), tmp_path / "out"
    run(monkeypatch, "mm_gem", out)
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    names = {}
    with torch.inference_mode():
        exec(code, names)
        assert type(names["model"]) is transformers.LlamaForCausalLM
        assert code.count("token_ids =") == 1
        found = torch.nn.functional.normalize(module.network.text_to_vector(names["state"]), dim=-1)
        assert differs(module.embed_texts(["a red circle"]), found) < 1e-5


@pytest.mark.parametrize(
    ("arm", "kind"), [("spae-language", "Lfm2ForCausalLM"), ("caption-language", "LlamaForCausalLM")]
)
def test_a_language_model_is_exported_with_its_tokenizer(arm, kind, project, tmp_path, monkeypatch):
    module, out = project(arm), tmp_path / "out"
    run(monkeypatch, arm, out)
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    names = {}
    with torch.inference_mode():
        exec(code, names)
        assert type(names["model"]) is getattr(transformers, kind)
        assert names["token_ids"].tolist() == [module.language.encode("a red circle")]
        assert differs(module(names["token_ids"]), names["logits"]) < 1e-5


def test_the_processor_cuts_pictures_as_evaluation_does(project, tmp_path):
    """At paper size the central square is kept; transformers rounds the size before it cuts, which moves edges."""
    assert centre_share({"crop_scale": [0.2, 1.0]}) == 0.875 and centre_share({}) is None
    exported = project("maskalign").to_transformers()
    prepared = export.processor(exported, {"crop_scale": [0.2, 1.0]})
    with pytest.raises(ValueError, match=r"within a square of 224 px \(data\.short, data\.long\)"):
        export.processor(exported, {"short": 224, "long": 224})
    assert prepared.size["shortest_edge"] == 37 and prepared.do_center_crop and prepared.crop_size["height"] == 32


def test_mistakes_are_named_and_nothing_is_written(project, tmp_path, monkeypatch):
    project("maskalign")
    for arguments, message in (
        (["maskaling", tmp_path / "out"], "no trained arm 'maskaling'; did you mean 'maskalign'"),
        (["maskalign", tmp_path / "out", "--seed", "7"], "has seeds 0, not 7"),
        (["maskalign-mae", tmp_path / "out"], "has no trained seed; `make repro` trains"),
        (["maskalign-world", tmp_path / "out", "--protocol", "prob"], "did you mean 'probe'"),
        (["maskalign", tmp_path], "exists already"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            run(monkeypatch, *arguments)
    assert not (tmp_path / "out").exists()
