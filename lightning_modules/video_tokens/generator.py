"""Generators: one transformer fills in the masked tokens of a clip, for ten tasks.

A task is a part of the clip that is given. The part is filled up to a whole clip and becomes tokens itself; where a
token is a condition, these stand in place of the mask, and are refined like any other (MAGVIT's COMMIT). At test time a
clip is decoded in 12 steps, all tokens at once.

Read `Generator.training_step` first, then `masking.py` and `tasks.py`. A paper says what tokenizes clips
(`tokenizer_class`), and may give another network; a token may be predicted as several sub-tokens (`factors`). The
tokenizer is that of the arm in `from`, with the average of its weights where it has one, and is frozen.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Annotated, ClassVar, Literal, NotRequired

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.base import PaperModule
from lightning_modules.layers.published import load_strictly
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.metrics.video import masked_mse, psnr
from lightning_modules.metrics.video_networks import PublishedNetworks
from lightning_modules.settings import STRICT, Count, NonNegative, Positive, Share, check
from lightning_modules.validation import judged, mean_over
from lightning_modules.video_tokens.building import build
from lightning_modules.video_tokens.clips import ClipData
from lightning_modules.video_tokens.kept import Kept
from lightning_modules.video_tokens.masking import Given, Part, Schedule, decode, draw_codes, mask_ratio, mask_tokens
from lightning_modules.video_tokens.perception import Judge
from lightning_modules.video_tokens.tasks import INPAINTING, MASK, OUTPAINTING, SEPARATOR, TASKS, Condition, Task
from lightning_modules.video_tokens.tokenizer import VideoTokenizer
from lightning_modules.video_tokens.training import (
    SHOWN,
    TokensRecipe,
    check_clips,
    check_files,
    checked_networks,
    stored,
)
from lightning_modules.video_tokens.transformer import Bert

SPECIALS = {False: 1, True: 16}  # slots of the vocabulary: the mask alone, or the tokens of tasks too
FOLLOWED = ("quantiser.used", "quantiser.sums")  # averages that a codebook follows in training alone
FURTHER = 10**6  # between the seeds of draws of one clip
SLOTS = 100  # of the least frequent task in the order of tasks
Conditioning = Literal["commit", "latent", "fixed", "prefix", "autoregressive"]


class Decoding(TypedDict):
    """How tokens are drawn, see `Generator`."""

    __pydantic_config__ = STRICT
    steps: NotRequired[Count]
    schedule: NotRequired[Schedule]
    temperature: NotRequired[NonNegative]
    sampling_temperature: NotRequired[NonNegative]
    guidance: NotRequired[NonNegative]


DECODING = Decoding(steps=12, schedule="cosine", temperature=4.5, sampling_temperature=1.0, guidance=0.0)


class Generator(PaperModule):
    """A frozen tokenizer, and the transformer that learns its tokens.

    Args:
        tokenizer: arguments of `tokenizer_class`, as in the arm named by `from`.
        network: arguments of the transformer, but for vocabulary, length and causal.
        num_classes: of the labels; 0 where there are none.
        judge: whether the tokenizer's arm has a judge, whose features are compared.
        tasks: that are learnt, names of `TASKS`; one is drawn for each step.
        weights: how often each is drawn; null for all alike.
        multi_task: whether a task token comes first.
        conditioning: `commit`; `latent`, MaskGIT's way; `fixed`; `prefix`, where the condition's tokens come before the
            sequence; `autoregressive`, the same with a causal network that draws one token after another.
        parts: of the loss, see `masking.mask_tokens`.
        schedule: of the mask ratio in training.
        label_smoothing: share of the target that is spread over all codes.
        class_drop: share of the clips that are shown without their class in training, for guidance.
        given_frames: first frames that frame prediction is given, and interpolation at either end; 5 for Kinetics-600.
        inpainting_token: whether inpainting has a task token of its own, which the released code leaves out.
        decoding: `steps`, `schedule` and `temperature` of `masking.decode`; `sampling_temperature`, that logits are
            divided by before a token is drawn, 0 for the most probable one; `guidance` g: logits are moved away from
            those without the class, l + g (l - l without).
        judged_tasks: that are decoded and compared with the truth.
        judged_rows: clips that are decoded for each.
        draws: how often each of them is.
        keep_tokens: whether the tokens of a row are computed once and kept.
        published: files of the networks of published measures, see `metrics.video_networks.PublishedNetworks`.
        pixel_scale: the stored value of white.

    Raises:
        ValueError: a task is unknown, needs classes that there are not, or cannot be conditioned in this way; `weights`
            are not as many as `tasks`; clips are too short for `given_frames`; or a part refuses its settings.
    """

    recipe_form = TokensRecipe
    predictor = "lightning_modules.video_tokens.predictor.Continuer"
    tokenizer_class: ClassVar[type[VideoTokenizer]]
    possible_tasks: ClassVar[Collection[str]] = TASKS

    def __init__(
        self,
        *,
        tokenizer: dict,
        network: dict,
        num_classes: Annotated[int, Field(ge=0, le=100_000)],
        judge: bool = False,
        tasks: Annotated[list[str], Field(min_length=1)],
        weights: list[Positive] | None = None,
        multi_task: bool = False,
        conditioning: Conditioning = "commit",
        parts: Annotated[list[Part], Field(min_length=1)] = ("mask", "refine", "recons"),
        schedule: Schedule = "cosine",
        label_smoothing: Share = 1e-4,
        class_drop: Share = 0.0,
        given_frames: Count = 1,
        inpainting_token: bool = False,
        decoding: dict | None = None,
        judged_tasks: Annotated[list[str], Field(min_length=1)],
        judged_rows: Count = 256,
        draws: Count = 1,
        keep_tokens: bool = False,
        published: dict | None = None,
        pixel_scale: Positive = 255.0,
    ):
        super().__init__()
        check_tasks([*tasks, *judged_tasks], self.possible_tasks, num_classes, conditioning)
        if weights is not None and len(weights) != len(tasks):
            raise ValueError(f"weights has {len(weights)} entries, expected {len(tasks)}: one for each of tasks.")
        self.tokenizer = build(self.tokenizer_class, tokenizer, "model.tokenizer").requires_grad_(False)
        check_given({*tasks, *judged_tasks}, given_frames, self.tokenizer.frames)
        self.judge = self.build_judge(num_classes).requires_grad_(False) if judge else None
        self.codes, self.classes, self.multi_task = self.tokenizer.vocabulary, num_classes, multi_task
        self.tokens = self.tokenizer.grid[0] * self.tokenizer.grid[1] * self.tokenizer.grid[2]
        self.autoregressive = conditioning == "autoregressive"
        self.conditioning = "prefix" if self.autoregressive else conditioning
        before = 1 + multi_task + self.autoregressive
        if self.conditioning == "prefix":
            before += self.tokens // self.tokenizer.grid[0] + 1
        self.vocabulary = self.codes + num_classes + 1 + SPECIALS[multi_task or self.conditioning == "prefix"]
        self.network = self.transformer(network, length=before + self.tokens, causal=self.autoregressive)
        self.tasks, self.judged_tasks, self.judged_rows, self.draws = tasks, judged_tasks, judged_rows, draws
        self.parts, self.schedule = parts, schedule
        self.label_smoothing, self.class_drop = label_smoothing, class_drop
        self.given_frames, self.inpainting_token = given_frames, inpainting_token
        self.decoding: Decoding = DECODING | check(decoding or {}, Decoding, "model.decoding")
        self.published, self.pixel_scale = checked_networks(published), pixel_scale
        self.register_buffer("order", task_order(weights or [1.0] * len(tasks)), persistent=False)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.kept = Kept(self.tokens) if keep_tokens else None

    def transformer(self, network: Mapping[str, object], *, length: int, causal: bool) -> nn.Module:
        """The transformer of these settings; it has `read`, as `Bert`."""
        return build(Bert, network, "model.network", vocabulary=self.vocabulary, length=length, causal=causal)

    def build_judge(self, classes: int) -> Judge:
        """The judge, whose weights come from the arm in `from`."""
        return Judge(classes)

    @property
    def factors(self) -> tuple[int, ...]:
        """Sizes of the vocabularies of a token's sub-tokens; their product is that of the tokenizer."""
        return (self.codes,)

    def check_data(self, data: ClipData) -> None:
        """Refuse clips that the tokenizer was not built for, unknown classes, and networks that are not there.

        Raises:
            ValueError: see above.
        """
        check_clips(data, self.tokenizer, self.classes or None)
        check_files(self.published)

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the tokenizer, and the judge, of a trained arm; of a generator its transformer too.

        Raises:
            ValueError: one of them is of another architecture.
        """
        for name, part in (("tokenizer", self.tokenizer), ("judge", self.judge), ("network", self.network)):
            own = {k.removeprefix(f"{name}."): x for k, x in weights.items() if k.startswith(f"{name}.")}
            if part is not None and (own or name != "network"):
                load_strictly(part, own, f"the {name} of the arm in `from`", unused=FOLLOWED)

    def train(self, mode: bool = True) -> "Generator":
        """The tokenizer and the judge are never trained."""
        super().train(mode)
        for part in (self.tokenizer, self.judge):
            if part is not None:
                part.eval()
        return self

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Float[Tensor, ""]:
        """Cross-entropy of the clip's tokens, at the positions and with the weights that the masks give (Eq. 4)."""
        name = self.tasks[int(self.order[int(self.step) % len(self.order)])]
        self.step += 1
        loss = self.loss(batch, name)
        self.log_terms({"pretrain/loss": loss})
        return loss

    def loss(self, batch: dict[str, Tensor], name: str) -> Float[Tensor, ""]:
        """That of one task."""
        task = TASKS[name]
        tokens, given = self.tokens_of(batch, name)
        before = self.before(task, self.dropped(batch["labels"]), given)
        if self.autoregressive:
            start = torch.full_like(before[:, :1], self.special(MASK))
            logits = self.network(torch.cat([start, before, tokens], 1)[:, :-1])
            asked = torch.ones_like(tokens, dtype=torch.float)
        else:
            ratio = mask_ratio(torch.rand(1, device=tokens.device), self.tokens, self.schedule)
            masked = mask_tokens(
                tokens, given, ratio, torch.rand(tokens.shape, device=tokens.device),
                mask=self.special(MASK), conditioning=self.conditioning, parts=self.parts,
            )  # fmt: skip
            logits, asked = self.network(torch.cat([before, masked.shown], 1)), masked.asked
        each = self.surprise(logits, tokens, self.label_smoothing)
        return ((each * asked).sum(1) / asked.sum(1).clamp_min(1e-8)).mean()

    def dropped(self, labels: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Classes, in training some of them as the number that stands for none."""
        if not self.class_drop or not self.training:
            return labels
        return labels.where(torch.rand(labels.shape, device=labels.device) >= self.class_drop, self.classes)

    def surprise(
        self, logits: Float[Tensor, "batch length _"], tokens: Int[Tensor, "batch tokens"], label_smoothing: float = 0.0
    ) -> Float[Tensor, "batch tokens"]:
        """Cross-entropy of each token in nats, the sum over its sub-tokens."""
        pairs = zip(self.split(logits), self.subtokens(tokens), strict=True)
        return sum(
            F.cross_entropy(part.transpose(1, 2), truth, reduction="none", label_smoothing=label_smoothing)
            for part, truth in pairs
        )

    def split(self, logits: Float[Tensor, "batch length _"]) -> tuple[Float[Tensor, "batch tokens _"], ...]:
        """The logits of each sub-token of the clip's tokens, of all that the network says."""
        return logits[:, -self.tokens :, : sum(self.factors)].split(self.factors, -1)

    def subtokens(self, tokens: Int[Tensor, "*shape"]) -> list[Int[Tensor, "*shape"]]:
        """Tokens as sub-tokens, the first of them the least significant."""
        found = []
        for factor in self.factors[:-1]:
            found.append(tokens % factor)
            tokens = tokens // factor
        return [*found, tokens]

    def joined(self, parts: Iterable[Int[Tensor, "*shape"]]) -> Int[Tensor, "*shape"]:
        """The tokens of sub-tokens."""
        token, unit = 0, 1
        for part, factor in zip(parts, self.factors, strict=True):
            token, unit = token + unit * part, unit * factor
        return token

    def draw(
        self, logits: Float[Tensor, "batch length _"], temperature: float, generator: torch.Generator
    ) -> tuple[Int[Tensor, "batch tokens"], Float[Tensor, "batch tokens"]]:
        """Tokens drawn, all sub-tokens at once, and the logarithms of their probabilities."""
        parts, sure = zip(*(draw_codes(part, temperature, generator) for part in self.split(logits)), strict=True)
        return self.joined(parts), sum(sure)

    @torch.no_grad()
    def tokens_of(self, batch: dict[str, Tensor], name: str) -> tuple[Int[Tensor, "batch tokens"], Given | None]:
        """The tokens of clips, and of what a task gives of them."""
        rows, task = batch.get("rows"), TASKS[name]
        if self.kept is None or rows is None or not self.training:
            video = self.read(batch["video"])
            return self.encoded(video), self.given(video, task)
        tokens = self.kept.once("clip", rows, lambda: self.encoded(self.read(batch["video"])))
        if task.condition is None:
            return tokens, None
        condition = self.condition(self.read(batch["video"]), task)
        return tokens, Given(self.kept.once(name, rows, lambda: self.encoded(condition.video)), self.places(condition))

    def read(self, video: Shaped[Tensor, "batch 3 frames h w"]) -> Float[Tensor, "batch 3 frames h w"]:
        """Stored pixels as pixels from 0 to 1."""
        return video / self.pixel_scale

    def encoded(self, video: Float[Tensor, "batch 3 frames h w"]) -> Int[Tensor, "batch tokens"]:
        """Tokens in one row: time, height, width."""
        return self.tokenizer.encode(video).flatten(1)

    def drawn(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch 3 frames h w"]:
        """The clips of tokens, within 0 and 1."""
        return self.tokenizer.decode(tokens.view(-1, *self.tokenizer.grid)).clamp(0, 1)

    def condition(self, video: Float[Tensor, "batch 3 frames h w"], task: Task) -> Condition:
        """What a task gives of clips."""
        found = task.condition(video, self.tokenizer.grid, self.given_frames)
        return Condition(found.video, found.pixels.to(video.device), found.tokens.to(video.device))

    def given(self, video: Float[Tensor, "batch 3 frames h w"], task: Task) -> Given | None:
        """The same as tokens."""
        if task.condition is None:
            return None
        condition = self.condition(video, task)
        return Given(self.encoded(condition.video), self.places(condition))

    def places(self, condition: Condition) -> Shaped[Tensor, "1 tokens"]:
        """Where tokens are a condition, in one row."""
        return condition.tokens.expand(1, *self.tokenizer.grid).flatten(1)

    def special(self, token: int) -> int:
        """The number of a special token, which are counted from the end of the vocabulary."""
        return self.vocabulary + token

    def before(self, task: Task, labels: Int[Tensor, " batch"], given: Given | None) -> Int[Tensor, "batch before"]:
        """What comes before the clip's tokens: task, class, and in a prefix the condition's first latent frame."""
        number = len(labels)
        parts = []
        if self.multi_task:
            token = OUTPAINTING if task.token == INPAINTING and not self.inpainting_token else task.token
            parts.append(labels.new_full((number, 1), self.special(token)))
        known = labels[:, None] if task.with_class else labels.new_full((number, 1), self.classes)
        parts.append(self.codes + known)
        if self.conditioning == "prefix" and given is not None:
            parts += [given.tokens[:, : self.tokens // self.tokenizer.grid[0]]]
            parts.append(labels.new_full((number, 1), self.special(SEPARATOR)))
        return torch.cat(parts, 1)

    @torch.no_grad()
    def generate(
        self,
        video: Float[Tensor, "batch 3 frames h w"],
        labels: Int[Tensor, " batch"],
        name: str,
        seed: int = 0,
        **decoding,
    ) -> Int[Tensor, "batch tokens"]:
        """The tokens of clips, of which only what the task gives is looked at.

        Args:
            video: pixels from 0 to 1.
            labels: classes, for the tasks that tell them.
            name: of the task.
            seed: of what is drawn.
            decoding: what differs from the module's own `decoding`.
        """
        task, generator = TASKS[name], torch.Generator(video.device).manual_seed(seed)
        given, options = self.given(video, task), self.decoding | check(decoding, Decoding, "decoding")
        before = self.before(task, labels, given)
        without = self.before(task, torch.full_like(labels, self.classes), given)
        temperature, guidance = options.pop("sampling_temperature"), options.pop("guidance")
        if self.autoregressive:
            return self._one_after_another(before, temperature, generator)

        def draw(shown: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.network(torch.cat([before, shown], 1))
            if guidance and task.with_class:
                logits = logits + guidance * (logits - self.network(torch.cat([without, shown], 1)))
            return self.draw(logits, temperature, generator)

        conditioning = "none" if given is None else self.conditioning
        return decode(
            draw, given, batch=len(video), tokens=self.tokens, mask=self.special(MASK),
            conditioning=conditioning, generator=generator, device=video.device, **options,
        )  # fmt: skip

    def _one_after_another(self, before: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
        """Each token drawn from those before it."""
        start = torch.full_like(before[:, :1], self.special(MASK))
        logits, past = self.network.read(torch.cat([start, before], 1), None)
        found = []
        for _ in range(self.tokens):
            token, _ = self.draw(logits[:, -1:], temperature, generator)
            found.append(token)
            if len(found) < self.tokens:
                logits, past = self.network.read(token, past)
        return torch.cat(found, 1)

    def validate(self, data: ClipData, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The loss of the first task, with masks drawn anew."""
        return mean_over(batches, lambda batch: {"loss": self.loss(batch, self.tasks[0])})

    @torch.no_grad()
    def forward(self, video: Shaped[Tensor, "batch 3 frames h w"]) -> Float[Tensor, "batch 3 frames h w"]:
        """Stored clips as they go on from their first frame; of a generator that is given none, a new clip for each."""
        labels = torch.zeros(len(video), dtype=torch.long, device=video.device)
        name = "fp" if "fp" in self.tasks else self.tasks[0]
        return self.drawn(self.generate(self.read(video), labels, name, sampling_temperature=0.0))

    @torch.no_grad()
    def predictions(self, data: ClipData, device: torch.device) -> dict[str, Tensor]:
        """What each judged task makes of the first clips of the split that is judged, under `<task>/...`.

        `psnr` and `mse` over the pixels that were not given; `copied`, the PSNR of the condition itself there;
        `ceiling`, that of the clip through the tokenizer; `right`, whether each token is the truth's; of tasks with a
        condition `where`, which tokens are one, and `differ`, whether the condition's token is not the clip's own.
        `features`, and the real clips' `features/real`, where there is a judge; of published networks `i3d`, `c3d` and
        `lpips`, and `i3d/real`. Of the first clips `shown/...`.
        """
        self.to(device).eval()
        networks = PublishedNetworks(**self.published, device=device)
        parts, left = defaultdict(list), self.judged_rows
        for split in judged(data.rows):
            for batch in data.evaluation_batches(split):
                video, labels = self.read(batch["video"].to(device))[:left], batch["labels"].to(device)[:left]
                left -= len(video)
                truth = self.encoded(video)
                again = self.drawn(truth)
                if self.judge is not None:
                    parts["features/real"].append(self.judge(video))
                    parts["features/ceiling"].append(self.judge(again))
                for kind, seen in networks.seen(video).items():
                    parts[f"{kind}/real"].append(seen)
                if "shown/real" not in parts:
                    parts["shown/real"].append(stored(video[:SHOWN]))
                for number, name in enumerate(self.judged_tasks):
                    task, seed = TASKS[name], 1000 * number + left
                    for draw in range(self.draws):
                        tokens = self.generate(video, labels, name, seed + FURTHER * draw)
                        made = self.drawn(tokens)
                        self._compare(parts, name, task, video, truth, again, tokens, made)
                        for kind, seen in (networks.seen(made) | networks.compared(made, video)).items():
                            parts[f"{name}/{kind}"].append(seen)
                if left == 0:
                    break
        return {name: torch.cat(part).cpu() for name, part in parts.items()}

    def judged_clips(self, data: ClipData) -> Iterator[Float[Tensor, "batch 3 frames h w"]]:
        """The clips that are judged, pixels from 0 to 1, on the module's device."""
        left = self.judged_rows
        for split in judged(data.rows):
            for batch in data.evaluation_batches(split):
                video = self.read(batch["video"].to(self.device))[:left]
                left -= len(video)
                if len(video):
                    yield video

    def _compare(self, parts, name, task, video, truth, again, tokens, made) -> None:
        """Append what is known of one task's clips."""
        missing = None
        if task.condition is not None:
            condition = self.condition(video, task)
            missing = ~condition.pixels
            where = self.places(condition)
            parts[f"{name}/where"].append(where.expand(len(video), -1))
            parts[f"{name}/differ"].append(self.encoded(condition.video) != truth)
            parts[f"{name}/copied"].append(psnr(condition.video, video, missing))
            if f"shown/{name}/given" not in parts:
                parts[f"shown/{name}/given"].append(stored(condition.video[:SHOWN]))
        parts[f"{name}/psnr"].append(psnr(made, video, missing))
        parts[f"{name}/mse"].append(masked_mse(made, video, missing))
        parts[f"{name}/ceiling"].append(psnr(again, video, missing))
        parts[f"{name}/right"].append(tokens == truth)
        if self.judge is not None:
            parts[f"{name}/features"].append(self.judge(made))
        if f"shown/{name}/made" not in parts:
            parts[f"shown/{name}/made"].append(stored(made[:SHOWN]))

    def facts(self) -> dict:
        """Sizes, and how often the network runs for a clip."""
        return {
            "parameters": count_parameters(self.network),
            "tokenizer_parameters": count_parameters(self.tokenizer),
            "tokens": self.tokens,
            "vocabulary": self.codes,
            "passes": self.tokens if self.autoregressive else self.decoding["steps"],
        }

    def parameter_groups(self) -> list[dict]:
        """Kernels of linear layers are decayed; embeddings, biases and norms are not (the code's `kernel`)."""
        decayed = {id(layer.weight) for layer in self.network.modules() if isinstance(layer, nn.Linear)}
        groups: dict[bool, list] = {True: [], False: []}
        for parameter in self.network.parameters():
            groups[id(parameter) in decayed].append(parameter)
        return [{"params": groups[True]}, {"params": groups[False], "weight_decay": 0.0}]

    def compiled_parts(self) -> Iterable[nn.Module]:
        """The layers."""
        return self.network.layers


def task_order(weights: Iterable[float], seed: int = 0) -> Int[Tensor, " steps"]:
    """Which task each step takes (maskgvt_train_lib.py, `get_task_idx_sequence`).

    A fixed random order, in which the least frequent task has 100 places, is gone through again and again.

    Args:
        weights: of the tasks; the least of them, or 1 if that is less, becomes 100 places.
        seed: of the order.
    """
    weights = np.array(list(weights))
    order = np.repeat(np.arange(len(weights)), np.round(weights * SLOTS / min(weights.min(), 1)).astype(int))
    return torch.from_numpy(np.random.default_rng(seed).permutation(order))


def check_tasks(tasks: Iterable[str], possible: Collection[str], classes: int, conditioning: str) -> None:
    """Refuse tasks that a generator cannot learn.

    Raises:
        ValueError: see above.
    """
    for name in tasks:
        if name not in possible:
            raise ValueError(f"task ({name!r}) must be one of {', '.join(possible)}.")
        if TASKS[name].with_class and not classes:
            raise ValueError(f"the task {name} tells the class of a clip, but num_classes is 0: set it.")
        if conditioning in ("prefix", "autoregressive") and name not in ("fp", "cfp", "cg", "unc"):
            raise ValueError(
                f"conditioning is {conditioning}, which knows frame prediction and generation alone, but tasks has "
                f"{name}: set it to commit."
            )


def check_given(tasks: Iterable[str], given: int, frames: int) -> None:
    """Refuse tasks that are given all frames of a clip.

    Raises:
        ValueError: see above.
    """
    for name, ends in (("fp", 1), ("cfp", 1), ("fi", 2)):
        if name in tasks and ends * given >= frames:
            raise ValueError(
                f"given_frames is {given}, which leaves none of {frames} frames to make in the task {name}: set it to "
                f"{(frames - 1) // ends} at most."
            )
