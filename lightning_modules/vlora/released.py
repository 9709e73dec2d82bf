"""VLoRA-7b-v1 as its authors released it, for answers: language model and generator from one folder, CLIP's tower.

Read `official_model` first. The prompt has the tokens of the official one, which cuts it at the picture's place; that
place itself, masked there, is left out as in `seeing`, so that what follows stands one position earlier.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_modules.base import PaperModule
from lightning_modules.layers.published import load_strictly
from lightning_modules.layers.teacher import Frozen
from lightning_modules.settings import Count
from lightning_modules.vision_language import words
from lightning_modules.vision_language.causal import Language, published_tokenizer
from lightning_modules.vision_language.towers import VisionTower, make_tower
from lightning_modules.vlora.generator import PerceptualWeights
from lightning_modules.vlora.injection import blocks_of, sizes_of
from lightning_modules.vlora.module import VLoRA
from lightning_modules.vlora.official import CONFIG, HEADS, LANGUAGE, load_official, read_official
from lightning_modules.vlora.seeing import Seeing

TOWER = "openai/clip-vit-large-patch14-336"
LAYER = -2  # of the tower, of which features are read
SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings",
)  # fmt: skip
MORE = ("num_key_value_heads", "rms_norm_eps", "rope_theta", "bos_token_id", "eos_token_id", "pad_token_id")
BEFORE = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: "
)
BEHIND = "\n{} ASSISTANT:"  # the picture
DESCRIBE = "Please describe this image."  # is asked for a caption


class Released(VLoRA):
    """A VLoRA that its authors trained, and that answers here; see `official_model`.

    Args:
        language: the language model.
        tower: the vision tower.
        generator: the official one.
        most: tokens of an answer.
    """

    def __init__(self, language: Language, tower: VisionTower, generator: PerceptualWeights, most: Count):
        PaperModule.__init__(self)  # parts are not made of settings
        self.language, self.tower = language, Frozen(tower)
        self.own_tower, self.own_language, self.given = False, False, True
        self.seeing = Seeing(language.whole, generator)
        self.way, self.generator_share, self.most, self.merged = "weights", 0.0, most, False
        self.prompts = {"caption": BEFORE + BEHIND.format(DESCRIBE), "question": BEFORE + BEHIND}

    def prompt(self, question: str | None = None) -> list[int]:
        """Ids of what stands before the answer to a question, by default that a picture be described."""
        behind = BEHIND.format(DESCRIBE if question is None else question)
        return [*self.language.start, *self.language.encode(BEFORE), *self.language.encode(behind)]


def official_model(folder: str | Path, *, tower: str = TOWER, most: Count = 128) -> Released:
    """The model in a folder, in float32 and for answers: 28 GB for that of 7 billion parameters, 3.4 for its generator.

    Args:
        folder: `VLoRA-7b-v1` as `hf download feipengma/VLoRA-7b-v1 --local-dir <folder>` fetches it.
        tower: of the hub, or a folder; its weights are not taken from the checkpoint.
        most: tokens of an answer.

    Raises:
        ValueError: a file is missing or damaged, a weight has no place or is missing, or sizes do not fit each other.
        ConnectionError: the tower is neither on the hub nor in its cache.
    """
    state, config = read_official(Path(folder))
    language = _language(Path(folder), state, config)
    seen = make_tower(hub=tower, layer=LAYER, fit="pad")
    if (seen.dim, seen.grid**2) != (config.get("vlora_visual_dim"), config.get("vlora_pos_num")):
        raise ValueError(
            f"{tower} gives {seen.grid**2} features of {seen.dim}, {CONFIG} says {config.get('vlora_pos_num')} of "
            f"{config.get('vlora_visual_dim')}: name the tower that the model was trained with."
        )
    blocks, alpha = blocks_of(language.whole), config.get("vlora_alpha")
    generator = PerceptualWeights(
        sizes=sizes_of(blocks[0]), layers=len(blocks), visual_dim=seen.dim, patches=seen.grid**2, heads=HEADS,
        dim=_given(config, "vlora_dim"), depth=_given(config, "vlora_depth"), rank=_given(config, "vlora_rank"),
        kinds=_given(config, "vlora_type"), separate=_given(config, "weights_sep"),
        skip=_given(config, "skip_layers"), alpha=None if alpha is None else float(alpha),
    )  # fmt: skip
    load_official(generator, state, config)
    return Released(language, seen, generator, most).eval()


def _language(folder: Path, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Language:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {name: _given(config, name) for name in SIZES} | {name: config[name] for name in MORE if name in config}
    model = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False))
    own = {name: x for name, x in state.items() if re.fullmatch(LANGUAGE, name)}
    load_strictly(model, own, f"the language model in {folder}")
    return Language(model, published_tokenizer(str(folder), words.language_tokenizer))


def _given(config: Mapping[str, Any], name: str) -> Any:
    if name not in config:
        raise ValueError(f"{CONFIG} has no {name}: give that of VLoRA, as it lies beside the weights.")
    return config[name]
