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
        ValueError: it is a CNN, its tokens are pooled, or its pictures are no squares of one size.
    """
    if isinstance(parser, Cnn):
        raise ValueError("its visual encoder is a ResNet, whose configuration does not say how large pictures are")
    if parser.pool:
        raise ValueError("its visual tokens are pooled (model.visual.pool), which SwinModel does not do")
    if parser.windows != "one":
        raise ValueError(
            "its pictures keep their aspect ratio within a square (model.visual.windows: several), which no image "
            "processor of transformers does"
        )
    return Exported(deepcopy(parser.model).eval(), statistics, USAGE, {"add_pooling_layer": False})
