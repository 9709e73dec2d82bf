"""The form of a block `preprocess` in `conf/`: what `augmentation.Preprocess` is given."""

from typing import Annotated, NotRequired

from pydantic import Field
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.settings import STRICT, Natural, Positive, Share

COLOURS = 3
Colours = Field(min_length=COLOURS, max_length=COLOURS)


class PixelSettings(TypedDict):
    """Of coloured pictures, see `augmentation.Preprocess`.

    `pixel_scale` is the stored value of white; `mean` and `std` are of its shares, one for each colour.
    """

    __pydantic_config__ = STRICT
    pixel_scale: Positive
    mean: Annotated[list[float], Colours]
    std: Annotated[list[Positive], Colours]
    crop_scale: NotRequired[Annotated[list[Share], Field(min_length=2, max_length=2)] | None]
    flip: NotRequired[bool]
    shift: NotRequired[Natural]
    rand_augment: NotRequired[Natural]
    erase: NotRequired[Share]
