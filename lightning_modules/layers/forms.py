"""What `conf/` may say of parts that papers share: pixels, and a BERT."""

from typing import Annotated, NotRequired

from pydantic import Field
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.settings import STRICT, Count, Natural, NonNegative, Positive, Share

Colour = Annotated[list[float], Field(min_length=3, max_length=3)]
Deviation = Annotated[list[Positive], Field(min_length=3, max_length=3)]


class Pixels(TypedDict):
    """Arguments of `tasks.augmentation.Preprocess` that normalise colours; `pixel_scale` is the value of white."""

    __pydantic_config__ = STRICT
    pixel_scale: Positive
    mean: Colour
    std: Deviation


class PixelSettings(Pixels):
    """Arguments of `tasks.augmentation.Preprocess`, with what it draws anew each time a picture is seen."""

    crop_scale: NotRequired[Annotated[list[Share], Field(min_length=2, max_length=2)] | None]
    flip: NotRequired[bool]
    shift: NotRequired[Natural]
    rand_augment: NotRequired[Natural]
    erase: NotRequired[Share]


class BertSizes(TypedDict):
    """Settings of `BertConfig`, for fresh weights; what is left out has the value there, that of BERT-base."""

    __pydantic_config__ = STRICT
    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    max_position_embeddings: Count
    type_vocab_size: NotRequired[Count]
    hidden_act: NotRequired[str]
    hidden_dropout_prob: NotRequired[Share]
    attention_probs_dropout_prob: NotRequired[Share]
    initializer_range: NotRequired[Positive]
    layer_norm_eps: NotRequired[NonNegative]


class BertPart(TypedDict):
    """Arguments of `layers.bert.make_bert`: a published BERT, or the `sizes` of a fresh one."""

    __pydantic_config__ = STRICT
    hub: NotRequired[str | None]
    sizes: NotRequired[BertSizes | None]
