"""VLoRA: what a language model of 7 billion parameters computes with and without visual tokens, and as the paper says.

Closed forms, in GFLOPs, without vision tower, generator and head. The paper's ratios are read off its figure, which
seems to include the vision side.
"""

from lightning_modules.vlora.costs import Sizes, addition_macs, gflops, language_macs, without_visual_tokens

PRINTED = {  # visual tokens -> tokens of text -> ratio in the paper's figure
    64: {32: 0.55, 128: 0.84, 256: 0.95},
    576: {32: 0.10, 128: 0.24, 256: 0.37},
    2600: {32: 0.05, 128: 0.085, 256: 0.125},
}


def main() -> list[dict]:
    """A row for each number of visual tokens and length of text."""
    sizes = Sizes()
    return [
        {
            "what": f"{text} tokens of text, {visual} visual ones",
            "with visual tokens, GFLOPs": gflops(language_macs(text + visual, sizes)),
            "without, GFLOPs": gflops(language_macs(text, sizes)),
            "additions, GFLOPs": gflops(addition_macs(text, sizes)),
            "ratio": without_visual_tokens(text, visual, sizes),
            "ratio in the paper's figure": ratio,
        }
        for visual, texts in PRINTED.items()
        for text, ratio in texts.items()
    ]
