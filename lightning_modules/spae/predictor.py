"""Answers about a user's files: a picture in words and words as pictures, and the name of a picture from examples."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lightning_modules.datasets.pictures import stored
from lightning_modules.files import read_array
from lightning_modules.metrics.video import psnr
from lightning_modules.predictors import Predictor
from lightning_modules.spae.in_context import SpaeInContext
from lightning_modules.spae.module import Spae
from lightning_modules.video_tokens.predictor import clip_of
from lightning_modules.video_tokens.side_by_side import shown

WHITE = 255


class Speller(Predictor):
    """Pictures (or clips) as words, and what each number of first layers draws; words as pictures.

    Args:
        module: a trained tokenizer.
        record: not needed.
    """

    def __init__(self, module: Spae, record: dict | None = None):
        self.module = module.eval()

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """For each layer its words, and the picture that the layers so far draw; last all words as numbers.

        A text file (.txt) has a line for each layer, words with spaces between them; an array file (.npy) the numbers
        that were answered, of all layers or of the first ones. Of these the pictures alone are answered.

        An answer has `layer`, `tokens`, the words of all layers so far; `words`, of this layer; `picture`, of clips
        `video` and `frames`; `psnr`, against the picture that was given. The last has `numbers`.

        Raises:
            ValueError: the file cannot be read, a word is not in the table, or a layer has another number of words.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        with torch.inference_mode():
            if suffix in (".txt", ".npy"):
                layers = self._lines(path) if suffix == ".txt" else self._numbers(path)
                yield from self._drawn(layers)
                return
            truth = self._read(path)
            layers = self.module.tokenizer.words_of(truth)
            yield from self._drawn(layers, truth)
            yield {"row": "words", "numbers": torch.cat(layers, dim=1)[0].numpy()}

    def _read(self, path: Path) -> Float[Tensor, "1 3 frames h w"]:
        tokenizer = self.module.tokenizer
        if tokenizer.dims == 3:
            return clip_of(path, tokenizer)
        pixels = stored(path, (3, tokenizer.size, tokenizer.size), WHITE)
        return torch.from_numpy(pixels)[:, :, None] / WHITE

    def _drawn(
        self, layers: Sequence[Int[Tensor, "1 _"]], truth: Float[Tensor, "1 3 frames h w"] | None = None
    ) -> Iterator[dict[str, Any]]:
        module = self.module
        for layer, words in enumerate(layers, start=1):
            video = module.tokenizer.picture_of(layers, layer).clamp(0, 1)
            found = shown(video)
            found = found if module.tokenizer.dims == 3 else {"picture": found["frames"]}
            if truth is not None:
                found["psnr"] = round(float(psnr(video, truth)), 2)
            told = {
                "tokens": sum(module.tokenizer.pyramid.tokens[:layer]),
                "words": " ".join(module.table.spelled(words)),
            }
            yield {"row": f"layer-{layer}", "layer": layer, **told, **found}

    def _lines(self, path: Path) -> list[Int[Tensor, "1 _"]]:
        """The words of a text file, as indices of the table."""
        try:
            lines = [line.split() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} cannot be read as text: {error}. Save it as UTF-8.") from error
        places = {word.lower(): place for place, word in reversed(list(enumerate(self.module.table.words)))}
        if unknown := [word for line in lines for word in line if word.lower() not in places]:
            close = [f", such as {word!r}" for word in get_close_matches(unknown[0], places, 1)]
            raise ValueError(
                f"{path} has {unknown[0]!r}, expected words of the table{''.join(close)}; it has {len(places)}."
            )
        self._check(path, [len(line) for line in lines])
        return [torch.tensor([[places[word.lower()] for word in line]]) for line in lines]

    def _numbers(self, path: Path) -> list[Int[Tensor, "1 _"]]:
        """The numbers of an array file, by layers."""
        array, pyramid = read_array(path), self.module.tokenizer.pyramid
        counts = pyramid.cumulative()
        if array.dtype.kind not in "iu" or array.ndim != 1 or len(array) not in counts:
            raise ValueError(
                f"{path} holds {array.dtype} of shape {array.shape}, expected a row of whole numbers, as predict "
                f"writes them: as many as one of {counts}."
            )
        tokens = pyramid.tokens[: counts.index(len(array)) + 1]
        return list(torch.from_numpy(array.astype(np.int64))[None].split(tokens, dim=1))

    def _check(self, path: Path, counts: Sequence[int]) -> None:
        tokens = self.module.tokenizer.pyramid.tokens
        if not counts or list(counts) != tokens[: len(counts)]:
            raise ValueError(
                f"{path} has lines of {list(counts)} words, expected a line for each of the first layers: {tokens}."
            )


class Namer(Predictor):
    """Names pictures with a frozen language model, which reads a few examples of each name in words.

    Args:
        module: a tokenizer and a language model.
        record: not needed.
    """

    def __init__(self, module: SpaeInContext, record: dict | None = None):
        self.module, self.context, self.names = module.eval(), None, []

    def begin(self, inputs: Sequence[Path], among: Path | None = None) -> list[Path]:
        """Read the examples: `among` has a folder for each name, in it pictures, the same number of each that is used.

        Files whose names begin with a dot are no examples.

        Raises:
            ValueError: there is no such folder, or it has fewer than two folders with pictures; the language model does
                not know a name, or tells two of them apart by capitals alone; or there are more examples than it has
                positions for.
        """
        if among is None or not among.is_dir():
            raise ValueError(
                f"--among is {among}, expected a folder of examples: in it a folder for each name, with pictures"
            )
        examples, refused = {}, []
        for folder in sorted(path for path in among.iterdir() if path.is_dir() and not path.name.startswith(".")):
            for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
                try:
                    examples.setdefault(folder.name, []).append(self._read(path))
                except ValueError as error:
                    refused.append(str(error))
        if len(examples) < 2:
            raise ValueError(f"{among} has pictures of {len(examples)} names, expected two at least: a folder for each")
        shots = min(map(len, examples.values()))
        self._check(list(examples), shots)
        self.refused = refused
        self.names = [name for _ in range(shots) for name in examples]
        self.context = torch.cat([examples[name][shot] for shot in range(shots) for name in examples])
        return list(inputs)

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """The names in order of their chances: `rank`, `name`, `probability`.

        Raises:
            ValueError: the file cannot be read, or no examples were given.
        """
        if self.context is None:
            raise ValueError(f"{path} cannot be named without examples: call begin with the folder of examples first")
        with torch.inference_mode():
            (found,) = self.module.named(self.context, self.names, self._read(Path(path)))
        for rank, (name, chance) in enumerate(found["chances"][:top], start=1):
            yield {"rank": rank, "name": name, "probability": round(chance, 6)}

    def _check(self, names: Sequence[str], shots: int) -> None:
        """Refuse names that are one to the language model, and more examples than it can read."""
        prompts, known = self.module.prompts, {}
        for name in names:
            other = known.setdefault(tuple(prompts.name(name)), name)
            if other != name:
                raise ValueError(f"{other} and {name} are one name to the language model: put their pictures together")
        words = [0] * sum(self.module.tokenizer.pyramid.tokens[: max(self.module.classifying["layers"])])
        prompt = prompts.few_shot([(words, ids) for ids in known] * shots, words, list(known))
        length = len(prompt) + max(map(len, known))
        self.module.language.check_length(length, f"give fewer than {shots} examples of each of {len(names)} names")

    def _read(self, path: Path) -> UInt8[Tensor, "1 3 size size"]:
        size = self.module.tokenizer.size
        pixels = stored(path, (3, size, size), WHITE)
        if len(pixels) != 1:
            raise ValueError(f"{path} holds {len(pixels)} pictures, expected one: save each in a file of its own")
        return torch.from_numpy(pixels).round().to(torch.uint8)
