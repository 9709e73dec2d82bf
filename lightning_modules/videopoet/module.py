"""VideoPoet: A Large Language Model for Zero-Shot Video Generation (Kondratyuk, Yu, Gu et al., ICML 2024, 2312.14125).

Clips, images and sounds become tokens of one vocabulary, and an ordinary decoder-only language model learns to write
them. What is given comes first and is read in both directions; what is to be written follows. Many tasks are nothing
but other contents of these two parts (`tasks.py`), so that clips without text are of use too. Each step trains one task
(`grouped.py`): images mostly at first, then videos.

Read `VideoPoet.training_step` first, then `sequences/` (vocabulary, layouts, the model). Both tokenizers are those of
the arm in `from` and frozen. No code was published, so that nothing could be compared with it; what the paper leaves
open is said where it is decided.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Literal, NotRequired

import torch
from jaxtyping import Float, Int, Shaped
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.base import PaperModule
from lightning_modules.layers.exported import Exported
from lightning_modules.layers.published import load_strictly
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.metrics.video_networks import PublishedNetworks
from lightning_modules.sequences.layout import Batch, Layout, arrange
from lightning_modules.sequences.prefix_lm import PrefixLM
from lightning_modules.sequences.vocabulary import Vocabulary
from lightning_modules.settings import STRICT, Count, Natural, NonNegative, Positive, Share, check_keys, meant
from lightning_modules.validation import judged, mean_over
from lightning_modules.video_tokens.building import build
from lightning_modules.video_tokens.causal_tokenizer import CausalTokenizer
from lightning_modules.video_tokens.kept import Kept
from lightning_modules.video_tokens.training import (
    SHOWN,
    TokensRecipe,
    check_clips,
    check_files,
    checked_networks,
    stored,
)
from lightning_modules.videopoet.audio import make_codec, stored_sound, waves
from lightning_modules.videopoet.clips import some
from lightning_modules.videopoet.grouped import Alternation, padded, two_phases
from lightning_modules.videopoet.guides import Guides, GuideSettings
from lightning_modules.videopoet.measuring import Measured, jumps
from lightning_modules.videopoet.tasks import PROMPTS, TASKS, Part, Task
from lightning_modules.videopoet.text import Words, make_text
from lightning_modules.videopoet.tokenizer import SoundData, part

WRITTEN = ("t2v", "i2v", "a2v")  # clips that are written and measured
Columns = Mapping[str, Tensor]


class Decoding(TypedDict):
    """How ids are drawn, see `PrefixLM.generate`; what is left out is as in `DECODING`."""

    __pydantic_config__ = STRICT
    temperature: NotRequired[NonNegative]
    top_k: NotRequired[Natural]
    guidance: NotRequired[NonNegative]


DECODING = Decoding(temperature=1.0, top_k=0, guidance=0.0)


class VideoPoet(PaperModule):
    """Frozen tokenizers of clips and sound, what captions become, and the language model.

    Args:
        tokenizer: arguments of `CausalTokenizer`, as in the arm named by `from`.
        codec: arguments of `audio.make_codec`, likewise.
        text: arguments of `text.make_text`.
        text_length: places for a caption, those of the data.
        network: arguments of `PrefixLM`, but for `vocabulary`, `places` and `text_dim`.
        tasks: that are learnt, names of `TASKS`.
        weights: of tasks that are learnt more or less often than others of their kind; 1 for those that are not named.
        turn: share of the steps after which videos come to the fore; 0 to begin so.
        first: share of the steps with images before, and of those with videos after it.
        batches: `grouped`, one task at each step; `padded`, the control: several tasks in one batch, padded.
        mixed: tasks of a padded batch.
        marks: names of specials that end what is given: the source of the data, the resolution.
        given: latent frames that frame prediction is given.
        text_drop: share of the captions that are left out in training, for guidance.
        decoding: see `Decoding`; guidance by the text.
        judged_tasks: whose tokens' probabilities are judged.
        judged_rows: clips that are written and measured; 0 for none.
        segments: that a clip is continued by, each as long as what frame prediction writes.
        guides: arguments of `guides.Guides`, which stylisation needs; they are built where it is learnt or judged.
        keep_tokens: whether the tokens of a row are computed once and kept.
        published: files of the networks of published measures, see `metrics.video_networks.PublishedNetworks`.
        pixel_scale: the stored value of white.

    Raises:
        ValueError: a task is unknown or named twice, a weight is of a task that is not learnt, `given` leaves nothing
            to write, stylisation has no guides, or a part of the model refuses its settings.
    """

    recipe_form = TokensRecipe
    predictor = "lightning_modules.videopoet.predictor.Director"

    def __init__(
        self,
        *,
        tokenizer: dict,
        codec: dict,
        text: dict,
        text_length: Count,
        network: dict,
        tasks: Annotated[list[str], Field(min_length=1)],
        weights: dict[str, Positive] | None = None,
        turn: Annotated[Share, Field(lt=1)] = 0.25,
        first: Share = 0.9,
        batches: Literal["grouped", "padded"] = "grouped",
        mixed: Count = 4,
        marks: list[str] | None = None,
        given: Count = 2,
        text_drop: Share = 0.1,
        decoding: Decoding | None = None,
        judged_tasks: Annotated[list[str], Field(min_length=1)],
        judged_rows: Natural = 128,
        segments: Count = 2,
        guides: GuideSettings | None = None,
        keep_tokens: bool = False,
        published: dict | None = None,
        pixel_scale: Positive = 255.0,
    ):
        super().__init__()
        for named in (tasks, judged_tasks):
            check_tasks(named)
        for name in weights or {}:
            if name not in tasks:
                raise ValueError(
                    f"weights has {name!r}, which is not among the tasks ({', '.join(tasks)}): leave it out."
                )
        self.tokenizer = build(CausalTokenizer, tokenizer, "model.tokenizer").requires_grad_(False)
        self.codec = build(make_codec, codec, "model.codec").requires_grad_(False)
        self.text = build(make_text, text, "model.text")
        self.grid, self.text_length, self.given, self.marks = self.tokenizer.grid, text_length, given, marks or []
        if not given < self.grid[0]:
            raise ValueError(f"given is {given}, expected less than the latent frames of a clip ({self.grid[0]}).")
        self.frame_tokens = self.grid[1] * self.grid[2]
        self.words = Vocabulary(
            self.tokenizer.vocabulary, self.codec.levels, self.codec.codes, prompts=[*PROMPTS, *self.marks]
        )
        self.visual_places, self.audio_places = self.grid[0] * self.frame_tokens, self.codec.frames * self.codec.levels
        self.network = build(
            PrefixLM, network, "model.network", vocabulary=len(self.words),
            places=self.visual_places + self.audio_places, text_dim=self.text.dim,
        )  # fmt: skip
        self.tasks, self.judged_tasks, self.judged_rows = tasks, judged_tasks, judged_rows
        self.alternation = Alternation(phases(tasks, weights or {}, turn, first))
        self.batches, self.mixed, self.text_drop, self.segments = batches, mixed, text_drop, segments
        check_keys(decoding or {}, (), DECODING, "model.decoding")
        self.decoding = DECODING | (decoding or {})
        self.published, self.pixel_scale = checked_networks(published), pixel_scale
        self.guides = None
        if any(TASKS[name].guided for name in (*tasks, *judged_tasks)):
            if guides is None:
                raise ValueError(
                    "stylise is among the tasks, but guides is null: name the networks of flow and depth, as "
                    "conf/system/videopoet/paper.yaml does."
                )
            self.guides = Guides(**guides)
        self.kept = (Kept(self.visual_places), Kept(self.audio_places)) if keep_tokens else None
        self.register_buffer("positions", torch.zeros(2, dtype=torch.long))  # computed in training, and useful ones
        self.layouts = {name: self.layout(task) for name, task in TASKS.items()}

    def layout(self, task: Task) -> Layout:
        """The arrangement of a task's sequences."""
        sound_start = self.first_audio if task.audio == "image" else 0
        start = self.video_start(task)
        return arrange(
            self.words,
            prompt=task.prompt,
            visual_places=self.visual_places,
            text=self.text_length * task.text,
            visual=self.visual_places if task.condition or task.guided else self.visual_tokens(task.visual),
            audio=self.audio_tokens(task.audio),
            marks=self.marks,
            video=self.frame_tokens if task.video == "image" else (self.visual_places - start) * bool(task.video),
            video_start=start,
            sound=(self.audio_places - self.codec.levels * sound_start) * bool(task.sound),
            sound_start=sound_start,
            audio_frames=self.codec.frames,
            ends=task.video != "image",
        )

    @property
    def first_audio(self) -> int:
        """Latent frames of the sound that belong to the first frame of a clip."""
        return -(-self.codec.frames // self.tokenizer.frames)

    @property
    def known_frames(self) -> int:
        """Frames of a clip that frame prediction is given."""
        return 1 + (self.given - 1) * ((self.tokenizer.frames - 1) // (self.grid[0] - 1))

    def visual_tokens(self, which: Part | None) -> int:
        """How many visual tokens are given."""
        return {None: 0, "image": 1, "start": self.given, "whole": self.grid[0]}[which] * self.frame_tokens

    def audio_tokens(self, which: Part | None) -> int:
        """How many audio tokens are given."""
        return {None: 0, "image": self.first_audio, "whole": self.codec.frames}[which] * self.codec.levels

    def video_start(self, task: Task) -> int:
        """Number of the first visual token that is written."""
        return self.visual_tokens(task.visual) if task.video == "rest" else 0

    def check_data(self, data: SoundData) -> None:
        """Refuse clips and sound that the tokenizers were not built for, and captions of another length.

        Raises:
            ValueError: see above.
        """
        check_clips(data, self.tokenizer, None)
        check_files(self.published)
        if (data.samples, data.sample_rate) != (self.codec.samples, self.codec.rate):
            raise ValueError(
                f"the data has {data.samples} samples, {data.sample_rate} a second, but model.codec is for "
                f"{self.codec.samples}, {self.codec.rate} a second: set samples and rate to those of the data."
            )
        if isinstance(self.text, Words) and self.text.embedding.num_embeddings != data.words:
            raise ValueError(
                f"model.text.words is {self.text.embedding.num_embeddings}, but captions of the data have {data.words} "
                "words: set it to that."
            )
        if data.text_length != self.text_length:
            raise ValueError(
                f"model.text_length is {self.text_length}, but data.text_length is {data.text_length}: set both alike."
            )

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over both tokenizers of a trained arm, and all of it where it is a language model.

        Raises:
            ValueError: a part is of another architecture.
        """
        if part(weights, "network"):
            self.load_export({**weights, "positions": self.positions})
            return
        for name, own in (("tokenizer", self.tokenizer), ("codec", self.codec)):
            load_strictly(own, part(weights, name), f"the {name} of the arm in `from`")

    def train(self, mode: bool = True) -> "VideoPoet":
        """The tokenizers are never trained."""
        super().train(mode)
        self.tokenizer.eval()
        self.codec.eval()
        return self

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Float[Tensor, ""]:
        """Cross-entropy of what is written, of one task, or of several in the padded control."""
        if self.batches == "grouped":
            sequences = self.sequences(self.alternation.task(self.global_step, self.steps), batch)
        else:
            sequences = self.mix(batch)
        self.count(sequences)
        loss = self.network.loss(sequences)
        self.log_terms({"pretrain/loss": loss})
        return loss

    @cached_property
    def steps(self) -> int:
        """Of the whole training; a plain loop, which has no trainer, is at its beginning."""
        return int(self.trainer.estimated_stepping_batches) if self._trainer is not None else 1_000_000

    def mix(self, batch: Columns) -> Batch:
        """Parts of a batch, each of a task of its own, padded to the longest."""
        rows = len(batch["video"])
        if rows % self.mixed:
            raise ValueError(f"a batch of {rows} rows cannot be cut into mixed ({self.mixed}) equal parts.")
        size, steps, parts = rows // self.mixed, self.steps * self.mixed, []
        for number in range(self.mixed):
            own = some(batch, slice(number * size, (number + 1) * size))
            parts.append(self.sequences(self.alternation.task(self.global_step * self.mixed + number, steps), own))
        return padded(parts, self.words.special("pad"))

    def count(self, sequences: Batch) -> None:
        """Note how many positions are computed, and how many of them are of use."""
        computed = sequences.ids.numel()
        useful = computed if sequences.lengths is None else sequences.lengths.sum()
        self.positions += torch.stack([torch.as_tensor(x, device=self.positions.device) for x in (computed, useful)])

    def sequences(self, name: str, batch: Columns, *, whole: bool = True, told: bool = True) -> Batch:
        """The sequences of a task.

        Args:
            name: of the task.
            batch: `video` and, as the task needs them, `audio`, `caption` and `caption_mask`.
            whole: whether what is to be written is in them.
            told: whether captions are told.

        Raises:
            ValueError: the task is unknown, or the batch has not what it needs.
        """
        check_tasks([name])
        task, layout = TASKS[name], self.layouts[name]
        self.check_batch(name, batch, whole)
        tokens = self.tokens_of(task, batch, whole)
        if task.text:
            seen = self.seen(batch["caption_mask"]) if told else torch.zeros_like(batch["caption_mask"])
            pad, text = (self.words.special(name) for name in ("pad", "text"))
            tokens["text"] = torch.where(seen, text, pad)
        features = self.features(task, batch) if task.text or whole else None
        return layout.batch(tokens, features, whole=whole)

    def check_batch(self, name: str, batch: Columns, whole: bool) -> None:
        """Refuse a batch that has not what a task needs, in the shapes of the model.

        Raises:
            ValueError: see above.
        """
        task, size = TASKS[name], self.tokenizer.size
        rows = len(batch["video"]) if "video" in batch else 0
        needed = {"video": (rows, 3, self.tokenizer.frames, size, size)}
        if task.text:
            needed |= dict.fromkeys(("caption", "caption_mask"), (rows, self.text_length))
        if task.audio or (task.sound and whole):
            needed["audio"] = (rows, self.codec.samples)
        for column, shape in needed.items():
            found = tuple(batch[column].shape) if column in batch else "absent"
            if found != shape:
                raise ValueError(f"{name} needs {', '.join(needed)}: {column!r} is {found}, expected {shape}.")

    def features(self, task: Task, batch: Columns) -> Float[Tensor, "batch words dim"] | None:
        """What captions become. Learnt words take part in every step, so that each step has a gradient for each."""
        if task.text or any(p.requires_grad for p in self.text.parameters()):
            return self.text(batch["caption"], batch["caption_mask"])
        return torch.zeros(*batch["caption"].shape, self.text.dim, device=self.device)

    def seen(self, mask: Shaped[Tensor, "batch words"]) -> Shaped[Tensor, "batch words"]:
        """Where captions have words; in training, some captions are left out."""
        if not self.text_drop or not self.training:
            return mask
        return mask & (torch.rand(len(mask), 1, device=mask.device) >= self.text_drop)

    @torch.no_grad()
    def tokens_of(self, task: Task, batch: Columns, whole: bool = True) -> dict[str, Int[Tensor, "batch _"]]:
        """The ids of the parts of a task's sequences."""
        clip = self.clip_ids(batch)
        found = {"video": clip[:, : self.frame_tokens] if task.video == "image" else clip[:, self.video_start(task) :]}
        if task.condition or task.guided:
            found["visual"] = self.condition_ids(task, batch)
        elif task.visual:
            found["visual"] = clip[:, : self.visual_tokens(task.visual)]
        if task.audio or (task.sound and whole):
            codes = self.sound_codes(batch)
            begun = codes[:, : self.first_audio] if task.audio == "image" else codes
            found["audio"] = self.words.audio_ids(begun)
            rest = codes[:, self.first_audio :] if task.audio == "image" else codes
            found["sound"] = self.words.audio_ids(rest)
        return found

    def clip_ids(self, batch: Columns) -> Int[Tensor, "batch tokens"]:
        """The ids of clips, frame by frame."""
        return self.words.visual_ids(self.once(0, "clip", batch, lambda: self.encoded(self.read(batch["video"]))))

    def condition_ids(self, task: Task, batch: Columns) -> Int[Tensor, "batch tokens"]:
        """The ids of what a task gives of the pixels.

        Raises:
            ValueError: flow and depth are asked for, and the model was built without the networks that measure them.
        """

        def compute() -> Int[Tensor, "batch tokens"]:
            video = self.read(batch["video"])
            if not task.guided:
                return self.encoded(task.condition(video, self.grid, 1).video)
            if self.guides is None:
                raise ValueError(
                    f"the model has learnt {', '.join(self.tasks)}, and has no networks of flow and depth: take one "
                    "with stylise among its tasks."
                )
            return self.encoded(self.guides(video))

        return self.words.visual_ids(self.once(0, task.title, batch, compute))

    def sound_codes(self, batch: Columns) -> Int[Tensor, "batch frames levels"]:
        """The codes of sound."""
        found = self.once(1, "sound", batch, lambda: self.codec.encode(waves(batch["audio"])).flatten(1))
        return found.unflatten(1, (self.codec.frames, self.codec.levels))

    def once(self, which: int, name: str, batch: Columns, compute) -> Int[Tensor, "batch tokens"]:
        """Tokens, computed once for each row of the training if they are to be kept."""
        if self.kept is None or not self.training or "rows" not in batch:
            return compute()
        return self.kept[which].once(name, batch["rows"], compute)

    def read(self, video: Shaped[Tensor, "batch 3 frames h w"]) -> Float[Tensor, "batch 3 frames h w"]:
        """Stored pixels as pixels from 0 to 1."""
        return video / self.pixel_scale

    def encoded(self, video: Float[Tensor, "batch 3 frames h w"]) -> Int[Tensor, "batch tokens"]:
        """Visual tokens in one row: time, height, width."""
        return self.tokenizer.encode(video).flatten(1)

    def drawn(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch 3 frames h w"]:
        """The clips of visual tokens, also of the first latent frames alone, within 0 and 1."""
        return self.tokenizer.decode(tokens.view(len(tokens), -1, *self.grid[1:])).clamp(0, 1)

    @torch.no_grad()
    def generate(self, name: str, batch: Columns, seed: int = 0, **decoding) -> dict[str, Tensor]:
        """What a task writes, of which only what it is given is looked at.

        Args:
            name: of the task.
            batch: see `sequences`; clips are whole, however little of them is given.
            seed: of what is drawn.
            decoding: what differs from the module's own `decoding`.

        Returns:
            `video`, pixels from 0 to 1 with the given frames before the written ones, and `wave`, samples from -1 to 1
            of the whole sound, as far as the task writes them.

        Raises:
            ValueError: the task or an option of the decoding is unknown, or the batch has not what the task needs.
        """
        check_tasks([name])
        check_keys(decoding, (), DECODING, "the decoding")
        task, layout, options = TASKS[name], self.layouts[name], self.decoding | decoding
        options["guidance"] *= task.text
        given = self.sequences(name, batch, whole=False)
        found = layout.written(
            self.network.generate(
                given,
                layout.slots,
                layout.places,
                generator=torch.Generator(given.ids.device).manual_seed(seed),
                without=self.sequences(name, batch, whole=False, told=False) if options["guidance"] else None,
                **options | {"top_k": int(options["top_k"])},
            )
        )
        return self._shown(task, batch, found)

    def _shown(self, task: Task, batch: Columns, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        shown = {}
        if task.video:
            before = self.clip_ids(batch)[:, : self.video_start(task)]
            shown["video"] = self.drawn(self.words.visual_tokens(torch.cat([before, found["video"]], 1)))
        if task.sound:
            codes = self.words.audio_tokens(found["sound"])
            if missing := self.codec.frames - codes.shape[1]:
                codes = torch.cat([self.sound_codes(batch)[:, :missing], codes], 1)
            shown["wave"] = self.codec.decode(codes)
        return shown

    @torch.no_grad()
    def extended(
        self, video: Float[Tensor, "batch 3 frames h w"], segments: int, seed: int = 0, **decoding
    ) -> Float[Tensor, "batch 3 longer h w"]:
        """A clip that goes on: again and again its last frames are the first ones of a new clip (section 3.5).

        Args:
            video: pixels from 0 to 1.
            segments: that are added, each with the frames that frame prediction writes.
            seed: of what is drawn.
            decoding: see `generate`.

        Raises:
            ValueError: the clip has fewer frames than frame prediction is given, or nothing is to be added.
        """
        known = self.known_frames
        if video.shape[2] < known or segments < 1:
            raise ValueError(
                f"a clip of {video.shape[2]} frames and {segments} segments, expected at least {known} frames, which "
                "frame prediction is given, and 1 segment."
            )
        for number in range(segments):
            last = video[:, :, -known:]
            still = last[:, :, -1:].expand(-1, -1, self.tokenizer.frames - known, -1, -1)  # not looked at
            batch = {"video": torch.cat([last, still], 2) * self.pixel_scale}
            made = self.generate("fp", batch, seed + number, **decoding)["video"]
            video = torch.cat([video, made[:, :, known:]], 2)
        return video

    def validate(self, data: SoundData, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The surprise of the judged tasks' tokens, and its mean over these tasks."""

        def measure(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            found = {f"{name}_nll": self.surprise(name, batch).mean() for name in self.judged_tasks}
            return {"nll": torch.stack(list(found.values())).mean(), **found}

        return mean_over(batches, measure)

    def surprise(self, name: str, batch: Columns) -> Float[Tensor, " batch"]:
        """Nats of each token that a task writes, specials left out: the mean over a sequence."""
        told = torch.tensor([bool(kind) for kind in self.layouts[name].content], device=self.device)
        return self.network.surprise(self.sequences(name, batch))[:, told].mean(1)

    @torch.no_grad()
    def forward(self, video: Shaped[Tensor, "batch 3 frames h w"]) -> Float[Tensor, "batch 3 frames h w"]:
        """Stored clips as they go on from their first frame, by the most probable tokens."""
        return self.generate("i2v", {"video": video}, temperature=0.0)["video"]

    @torch.no_grad()
    def predictions(self, data: SoundData, device: torch.device) -> dict[str, Tensor]:
        """What the judged tasks' tokens cost, and what is measured on clips and sounds that are written.

        Of the split that is judged, for each clip `<task>/nll`. Of its first `judged_rows` clips `chaining/...`, see
        `measuring.jumps`, and of clips of the captioned world what `Measured` gives; of published networks `t2v/i3d`
        and so on. Of the first clips `shown/...`, uint8, and their sounds `shown/sound/...`, int16. And `positions`,
        computed and useful ones in the training.
        """
        self.to(device).eval()
        networks = PublishedNetworks(**self.published, device=device)
        parts, left = defaultdict(list), self.judged_rows
        for split in judged(data.rows):
            for batch in data.evaluation_batches(split):
                batch = {name: x.to(device) for name, x in batch.items() if isinstance(x, Tensor)}
                for name in self.judged_tasks:
                    parts[f"{name}/nll"].append(self.surprise(name, batch))
                if left > 0:
                    self._measure(parts, some(batch, slice(left)), networks, seed=left)
                    left -= min(left, len(batch["video"]))
        return {name: torch.cat(part).cpu() for name, part in parts.items()} | {"positions": self.positions.cpu()}

    def _measure(self, parts: dict[str, list[Tensor]], batch: Columns, networks: PublishedNetworks, seed: int) -> None:
        """Append what is measured on what is written for a batch."""
        video, wave = self.read(batch["video"]), waves(batch["audio"])
        made = {"again": self.drawn(self.encoded(video))}
        made |= {name: self.generate(name, batch, seed)["video"] for name in WRITTEN}
        sound = self.generate("v2a", batch, seed)["wave"]
        chained = self.generate("v2a", {**batch, "video": made["t2v"] * self.pixel_scale}, seed)["wave"]
        longer = self.extended(made["again"], self.segments, seed)
        apart = torch.cat([made["again"], *self.unconditioned(len(video), seed)], 2)
        found = jumps(longer, apart, self.tokenizer.frames)
        if "height" in batch:  # the captioned world
            measured = Measured(video)
            found |= measured.written(batch["labels"], made, wave, sound, chained) | measured.chained(longer, apart)
        found |= {f"{kind}/real": seen for kind, seen in networks.seen(video).items()}
        found |= {f"t2v/{kind}": seen for kind, seen in networks.seen(made["t2v"]).items()}
        for name, values in found.items():
            parts[name].append(values)
        if "shown/real" not in parts:
            clips = {"real": video, **made, "longer": longer, "apart": apart}
            sounds = {"real": wave, "v2a": sound, "codec": self.codec.decode(self.sound_codes(batch))}
            for name, clip in clips.items():
                parts[f"shown/{name}"].append(stored(clip[:SHOWN]))
            for name, heard in sounds.items():
                parts[f"shown/sound/{name}"].append(stored_sound(heard[:SHOWN]))

    def unconditioned(self, rows: int, seed: int) -> list[Float[Tensor, "batch 3 frames h w"]]:
        """Segments as long as those of `extended`, written from nothing: the control of chaining."""
        size = (self.tokenizer.size,) * 2
        nothing = {"video": torch.zeros(rows, 3, self.tokenizer.frames, *size, device=self.device)}
        time = (self.tokenizer.frames - 1) // (self.grid[0] - 1)
        frames = (self.grid[0] - self.given) * time
        return [
            self.generate("unc", nothing, seed + number)["video"][:, :, -frames:] for number in range(self.segments)
        ]

    def to_transformers(self) -> Exported:
        """None: a LlamaForCausalLM reads ids alone.

        Raises:
            ValueError: always; the message says what can be had.
        """
        raise ValueError(
            "LlamaForCausalLM knows neither places of a clip nor a prefix: `module.network.to_transformers()` gives "
            "one that computes the same from `network.embed` and `network.mask`."
        )

    def facts(self) -> dict:
        """Sizes."""
        return {
            "parameters": count_parameters(self.network) + count_parameters(self.text),
            "vocabulary": len(self.words),
            "rate": self.codec.rate,
            "lengths": {name: self.layouts[name].length for name in self.tasks},
        }

    def parameter_groups(self) -> list[dict]:
        """Kernels of linear layers are decayed; embeddings and norms are not."""
        decayed = {id(layer.weight) for layer in self.network.modules() if isinstance(layer, nn.Linear)}
        groups: dict[bool, list] = {True: [], False: []}
        for parameter in [*self.network.parameters(), *self.text.parameters()]:
            if parameter.requires_grad:
                groups[id(parameter) in decayed].append(parameter)
        return [{"params": groups[True]}, {"params": groups[False], "weight_decay": 0.0}]

    def compiled_parts(self) -> Iterable[nn.Module]:
        """The blocks."""
        return self.network.layers


def phases(tasks: Iterable[str], weights: Mapping[str, float], turn: float, first: float) -> list:
    """The schedule of the tasks, see `grouped.two_phases`."""
    kinds: tuple[dict, dict] = ({}, {})
    for name in tasks:
        kinds[TASKS[name].video != "image"][name] = weights.get(name, 1.0)
    return two_phases(*kinds, turn=turn, first=first)


def check_tasks(names: Sequence[str]) -> None:
    """Refuse a task that is not known, or named twice.

    Raises:
        ValueError: see above.
    """
    for name in names:
        if name not in TASKS:
            raise ValueError(f"the task {name!r} is unknown{meant(name, TASKS)}")
        if names.count(name) > 1:
            raise ValueError(f"the task {name!r} is named twice: name it once; `weights` says how often it is learnt.")
