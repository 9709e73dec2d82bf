"""The order of what a sequence holds, as data: what is given, the prefix, and then what is to be written.

    <bos> <prompt> <bot_i> text <eot_i> <bov_i> visual <eov_i> <boa_i> audio <eoa_i> <mark> ... |
    <bov_o> visual <eov_o> <boa_o> audio <eoa_o> <eos>

What a task has not is left out with its delimiters (VideoPoet, section 3.2 and figure 2).
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_modules.sequences.vocabulary import AUDIO, VISUAL, Vocabulary

TEXT_AT = 3  # where text begins: after the start, the prompt and its delimiter
Kind = Literal["special", "text", "visual", "audio"]


class Part(NamedTuple):
    """A stretch of a sequence.

    Attributes:
        kind: what it holds.
        name: of the special, or under which its tokens are given and found.
        length: places that it takes.
        start: number of its first token within the whole clip, or of its first latent frame within the whole sound,
            where it holds a later part alone.
        output: whether it is written and not given.
    """

    kind: Kind
    name: str
    length: int = 1
    start: int = 0
    output: bool = False


class Batch(NamedTuple):
    """Sequences of one layout, or of several ones padded to the longest.

    Attributes:
        ids: what they hold.
        places: where in a clip or sound each token lies, from 1 on, see `Layout.places`; 0 for all else.
        prefix: how many of the first places are given, of all or of each.
        lengths: of each sequence, where they are padded.
        features: of a text encoder, for the places from `TEXT_AT` on that hold the id of `text`.
    """

    ids: Int[Tensor, "batch length"]
    places: Int[Tensor, "#batch length"]
    prefix: int | Int[Tensor, " batch"]
    lengths: Int[Tensor, " batch"] | None = None
    features: Float[Tensor, "batch words dim"] | None = None


class Layout:
    """The sequence of a task.

    Args:
        vocabulary: whose ids it is made of.
        parts: in order, those that are given before those that are written.
        visual_places: tokens of the longest clip; places of sounds are counted after these.
        audio_frames: latent frames of the longest sound; 0 where each part with audio is a whole sound.

    Raises:
        ValueError: parts are out of order, empty, or named twice; nothing is written; text is not where it has to be;
            or a special or the audio is not in the vocabulary.
    """

    def __init__(self, vocabulary: Vocabulary, parts: Sequence[Part], visual_places: int, audio_frames: int = 0):
        self.vocabulary, self.parts = vocabulary, tuple(parts)
        self.visual_places, self.audio_frames = visual_places, audio_frames
        self.length = sum(part.length for part in parts)
        self.prefix = sum(part.length for part in parts if not part.output)
        self._check()

    def _check(self) -> None:
        outputs = [part.output for part in self.parts]
        if outputs != sorted(outputs) or not any(outputs) or all(outputs):
            raise ValueError("a layout has to give something first and then have something written, in this order.")
        names = [part.name for part in self.parts if part.kind != "special"]
        if len(set(names)) < len(names):
            raise ValueError(f"the parts of a layout are named {', '.join(names)}: give each a name of its own.")
        for part, span in zip(self.parts, self.spans, strict=True):
            if part.length < 1:
                raise ValueError(f"the part {part.name!r} has a length of {part.length}: leave it out.")
            if part.kind == "text" and (span.start != TEXT_AT or part.output):
                raise ValueError(f"text begins at place {span.start}, expected {TEXT_AT}, and it is never written.")
            if part.kind == "visual" and part.start + part.length > self.visual_places:
                raise ValueError(
                    f"the part {part.name!r} ends with visual token {part.start + part.length}, but a clip has at most "
                    f"{self.visual_places}."
                )
            if part.kind != "text":
                self._slots_of(part)

    @cached_property
    def spans(self) -> tuple[slice, ...]:
        """The places of each part."""
        found, at = [], 0
        for part in self.parts:
            found.append(slice(at, at + part.length))
            at += part.length
        return tuple(found)

    @cached_property
    def slots(self) -> tuple[slice, ...]:
        """The ids that each place after the prefix may take."""
        return tuple(slot for part in self.parts if part.output for slot in self._slots_of(part))

    def _slots_of(self, part: Part) -> list[slice]:
        if part.kind == "special":
            return [self.vocabulary.allowed(part.name)] * part.length
        if part.kind == "visual":
            return [self.vocabulary.allowed(VISUAL)] * part.length
        levels = self.vocabulary.audio_levels
        if part.length % max(levels, 1):
            raise ValueError(f"the part {part.name!r} has {part.length} tokens, which {levels} levels cannot share.")
        return [self.vocabulary.allowed(f"{AUDIO}/{place * levels // part.length}") for place in range(part.length)]

    @cached_property
    def places(self) -> Int[Tensor, " length"]:
        """1 + the number of each visual token in its clip; of audio tokens likewise, after all those of clips."""
        found = torch.zeros(self.length, dtype=torch.long, device="cpu")
        for part, span in zip(self.parts, self.spans, strict=True):
            if part.kind == "visual":
                found[span] = 1 + part.start + torch.arange(part.length, device="cpu")
            elif part.kind == "audio":
                frames = part.length // self.vocabulary.audio_levels
                token = torch.arange(part.length, device="cpu")
                first = token // frames * (self.audio_frames or frames)  # of the token's level
                found[span] = 1 + self.visual_places + first + part.start + token % frames
        return found

    def span(self, name: str) -> slice:
        """The places of a part with tokens.

        Raises:
            ValueError: there is no part of this name.
        """
        for part, span in zip(self.parts, self.spans, strict=True):
            if part.name == name and part.kind != "special":
                return span
        raise ValueError(f"the layout has no part {name!r}; known: {', '.join(self.names())}.")

    def names(self, *, given: bool = False) -> list[str]:
        """The parts with tokens; only those of the prefix if `given`."""
        return [part.name for part in self.parts if part.kind != "special" and not (given and part.output)]

    def batch(
        self,
        tokens: Mapping[str, Int[Tensor, "batch _"]],
        features: Float[Tensor, "batch words dim"] | None = None,
        *,
        whole: bool = True,
    ) -> Batch:
        """Sequences with these ids in them.

        Args:
            tokens: ids of each part by its name, of text words, `pad`, or `text` where features take their place;
                further ones only say how many sequences there are.
            features: of the texts.
            whole: whether the outputs are given too, as in training; else the sequences end with the prefix.

        Raises:
            ValueError: a part is missing or has another length.
        """
        for name in self.names(given=not whole):
            expected = _length(self.span(name))
            if name not in tokens or tokens[name].shape[1] != expected:
                found = tuple(tokens[name].shape) if name in tokens else "absent"
                raise ValueError(f"the tokens {name!r} of a layout are {found}, expected (batch, {expected}).")
        some = next(iter(tokens.values()))
        columns = [
            some.new_full((len(some), part.length), self.vocabulary.special(part.name))
            if part.kind == "special"
            else tokens[part.name]
            for part in self.parts
            if whole or not part.output
        ]
        ids = torch.cat(columns, 1)
        return Batch(ids, self.places[None, : ids.shape[1]].to(ids.device), self.prefix, None, features)

    def written(self, outputs: Int[Tensor, "batch outputs"]) -> dict[str, Int[Tensor, "batch _"]]:
        """The ids of each written part, of all ids after the prefix."""
        return {
            part.name: outputs[:, span.start - self.prefix : span.stop - self.prefix]
            for part, span in zip(self.parts, self.spans, strict=True)
            if part.output and part.kind != "special"
        }

    @cached_property
    def content(self) -> tuple[str, ...]:
        """What each place after the prefix holds: the name of a part with tokens, or nothing for a special."""
        names = (["" if part.kind == "special" else part.name] * part.length for part in self.parts if part.output)
        return tuple(name for part in names for name in part)


def arrange(
    vocabulary: Vocabulary,
    *,
    prompt: str,
    visual_places: int,
    text: int = 0,
    visual: int = 0,
    audio: int = 0,
    marks: Sequence[str] = (),
    video: int = 0,
    video_start: int = 0,
    sound: int = 0,
    sound_start: int = 0,
    audio_frames: int = 0,
    ends: bool = True,
) -> Layout:
    """The layout of a task, with the parts `text`, `visual` and `audio` given, and `video` and `sound` written.

    Args:
        vocabulary: whose ids it is made of.
        prompt: name of the task's special.
        visual_places: tokens of the longest clip.
        text: places for text.
        visual: visual tokens that are given.
        audio: audio tokens that are given.
        marks: names of specials that end the prefix: source of the data, resolution.
        video: visual tokens that are written.
        video_start: number of the first of them in the clip.
        sound: audio tokens that are written.
        sound_start: number of the latent frame that they begin with.
        audio_frames: latent frames of the longest sound; 0 where every sound is whole.
        ends: whether the written clip is closed; an image's is left open, so that it may go on as a video.

    Raises:
        ValueError: see `Layout`.
    """
    parts = [Part("special", "bos"), Part("special", prompt)]
    parts += _enclosed("text", "text", text, "bot_i", "eot_i")
    parts += _enclosed("visual", "visual", visual, "bov_i", "eov_i")
    parts += _enclosed("audio", "audio", audio, "boa_i", "eoa_i")
    parts += [Part("special", mark) for mark in marks]
    outputs = _enclosed("visual", "video", video, "bov_o", "eov_o", video_start)
    outputs += _enclosed("audio", "sound", sound, "boa_o", "eoa_o", sound_start)
    outputs = [*outputs, Part("special", "eos")] if ends else outputs[:-1]
    return Layout(vocabulary, [*parts, *(part._replace(output=True) for part in outputs)], visual_places, audio_frames)


def _enclosed(kind: Kind, name: str, length: int, before: str, after: str, start: int = 0) -> list[Part]:
    if not length:
        return []
    return [Part("special", before), Part(kind, name, length, start), Part("special", after)]


def _length(span: slice) -> int:
    return span.stop - span.start
