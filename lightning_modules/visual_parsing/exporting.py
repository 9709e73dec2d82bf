"""A trained visual parser for `transformers`: the Swin Transformer, whose tokens and attention are those of ours."""

from collections.abc import Sequence
from copy import deepcopy

from lightning_modules.layers.exported import Exported
from lightning_modules.visual_parsing.parsing import Cnn, Swin

USAGE = "tokens = model(pixels).last_hidden_state"


def exported(parser: Swin | Cnn, statistics: tuple[Sequence[float], Sequence[float]]) -> Exported:
    """The visual parser as `SwinModel`; words and the multimodal Transformer are not part of it.

    Args:
        parser: of the trained network.
        statistics: mean and deviation of pictures.

    Raises:
        ValueError: it is a CNN, its tokens are pooled, or its pictures are larger than the square of its configuration.
    """
    if isinstance(parser, Cnn):
        raise ValueError("its visual encoder is a ResNet, whose configuration does not say how large pictures are")
    if parser.pool:
        raise ValueError("its visual tokens are pooled (model.visual.pool), which SwinModel does not do")
    config = parser.model.config
    grid = config.image_size // config.patch_size // 2 ** (len(config.depths) - 1)
    if parser.windows == "several" and grid <= config.window_size:
        raise ValueError(
            f"model.visual.windows is several, but {config.image_size} x {config.image_size} pixels are one window: "
            "its pictures are larger and keep their aspect ratio, which no image processor of transformers does"
        )
    return Exported(deepcopy(parser.model).eval(), statistics, USAGE, {"add_pooling_layer": False})
