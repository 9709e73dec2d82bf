"""A small model in the layout of VLoRA-7b-v1 is built from its folder, and answers."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from lightning_modules.vision_language.words import TOKENS, language_tokenizer
from lightning_modules.vlora.predictor import Teller
from lightning_modules.vlora.released import official_model
from tests.vlora.test_official import CONFIG, official

SIZES = {"vocab_size": len(TOKENS), "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 8,
         "num_attention_heads": 4, "max_position_embeddings": 128}  # fmt: skip
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def language():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, **ENDS, tie_word_embeddings=False)).eval()


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "released"
    place.mkdir()
    language_tokenizer().save_pretrained(place)
    write(place, {**language().state_dict(), **official(separate=True)})
    vision = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**vision, image_size=16, patch_size=4)).save_pretrained(tmp_path / "tower")
    return place


def write(place, state, **changes):
    save_file({name: x.half().contiguous() for name, x in state.items()}, place / "model.safetensors")
    config = {"model_type": "llava_vlora", **SIZES, **ENDS, **CONFIG, **changes}
    (place / "config.json").write_text(json.dumps({name: x for name, x in config.items() if x is not ...}))


def test_a_released_model_is_the_one_in_its_folder_and_answers(folder):
    model = official_model(folder, tower=str(folder.parent / "tower"), most=4)
    own, stored = model.language.whole.state_dict(), language().state_dict()
    assert all(torch.equal(own[name], x.half().float()) for name, x in stored.items())
    factor = official(separate=True)["model.mm_projector.Bs"].half().float()
    assert torch.equal(torch.cat([model.bridge.learned[kind] for kind in "qkvom"]).flatten(1), factor[0])
    assert model.bridge.scale == 2 and model.bridge.decoders[0].blocks[0].own.num_heads == 16
    assert (model.tower.network.layer, model.tower.network.fit) == (-2, "pad")
    Image.new("RGB", (20, 16), "red").save(folder / "mine.png")
    teller = Teller(model)
    said = teller.ask(folder / "mine.png", "what is it ?")
    model.merged = True
    assert teller.ask(folder / "mine.png", "what is it ?") == said
    assert all(torch.equal(own[name], x.half().float()) for name, x in stored.items()), "weights are as before"
    assert isinstance(teller.caption(folder / "mine.png"), str)


def test_a_picture_changes_what_follows(folder):
    model = official_model(folder, tower=str(folder.parent / "tower"))
    ids = torch.tensor([model.prompt("what is it ?")] * 2)
    images = torch.stack([torch.zeros(3, 16, 16), torch.full((3, 16, 16), 255.0)])
    with torch.no_grad():
        for seen in (True, False):
            told = torch.tensor([seen, seen])
            first, second = model.seeing(ids, torch.ones_like(ids).bool(), model.tower.network.features(images), told)
            assert torch.equal(first, second) != seen
            model.seeing.injection.use(None)
            assert torch.allclose(first, model.language(ids)[0], atol=1e-5) != seen


def test_the_prompt_is_cut_where_the_picture_stands(folder):
    model = official_model(folder, tower=str(folder.parent / "tower"))
    asked = []
    model.language.encode = lambda text: asked.append(text) or [len(text)]
    assert model.prompt("Who?")[len(model.language.start) :] == [len(text) for text in asked]
    assert (asked[0][-6:], asked[1]) == ("USER: ", "\nWho? ASSISTANT:")


@pytest.mark.parametrize(
    ("lost", "changes", "message"),
    [
        ("lm_head.weight", {}, "language model in .* is of another architecture: 1 keys differ"),
        ("model.mm_projector.pos_embed", {}, "official generator is of another architecture"),
        (None, {"hidden_size": ...}, "config.json has no hidden_size"),
        (None, {"vlora_rank": ...}, "config.json has no vlora_rank"),
        (None, {"vlora_pos_num": 9}, "gives 16 features of 24, config.json says 9 of 24: name the tower"),
        (None, {"vlora_llm_depth": 4}, "config.json says vlora_llm_depth 4, the generator has 8"),
        (None, {"vlora_rank": 2, "vlora_alpha": 4}, "official generator is of another architecture"),
        (None, {"num_key_value_heads": 2}, "language model in .* is of another architecture"),
    ],
)
def test_what_does_not_fit_is_refused(folder, lost, changes, message):
    state = {name: x for name, x in {**language().state_dict(), **official(separate=True)}.items() if name != lost}
    write(folder, state, **changes)
    with pytest.raises(ValueError, match=message):
        official_model(folder, tower=str(folder.parent / "tower"))
