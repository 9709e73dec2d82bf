"""A frozen language model reads and writes pictures as words, and learns in context alone (section 3.6).

Read `SpaeInContext.predictions` first. Nothing is trained: the tokenizer is that of the arm in `from`, the language
model is published, or the one of our own that this arm carries. Two measures: few-shot classification with the protocol
of Frozen and LQAE on mini-ImageNet, and pictures that are written by progressive in-context denoising.

What a language model gets right is held against two simple readers of the same words: `overlap` answers with the class
whose inputs have most words in common with the query, `voted` and `copied` repeat words of the context.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Annotated, NoReturn

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from pydantic import Field
from pytorch_lightning import LightningDataModule
from torch import Tensor
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.base import PaperModule
from lightning_modules.layers.published import load_strictly
from lightning_modules.layers.teacher import Frozen
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.settings import STRICT, Count, Natural, Positive, Share
from lightning_modules.spae.denoising import TASKS, Context, agreement, denoised, falling, from_names
from lightning_modules.spae.documents import FewShot, Writer
from lightning_modules.spae.episodes import DrawnEpisodes, MiniImageNetEpisodes, PictureEpisode
from lightning_modules.spae.language import LanguageSettings, make_language
from lightning_modules.spae.language_training import TextTasks, check_tasks, text_tasks
from lightning_modules.spae.module import NO_CLASS
from lightning_modules.spae.prompts import Prompts, StyleName, chances, exact, label_chances
from lightning_modules.spae.tokenizer import SpaeTokenizer, TokenizerSettings, from_language
from lightning_modules.video_tokens.training import TokensRecipe, stored
from lightning_modules.vision_language.causal import Language
from lightning_modules.vision_language.told import encoded

Episodes = DrawnEpisodes | MiniImageNetEpisodes
TEXT_SEEDS = 1000  # from which the seeds of tasks on texts count: none is that of tasks a model was validated with


class Setting(TypedDict):
    """One column of the protocol's table."""

    __pydantic_config__ = STRICT
    shots: Count
    repeats: Natural
    induced: bool


class Classifying(TypedDict):
    """Few-shot classification: layers of words that are read (each number of them), numbers of classes, and settings.

    `free`: whether names are decoded freely too, for exact match.
    """

    __pydantic_config__ = STRICT
    layers: Annotated[list[Count], Field(min_length=1)]
    ways: Annotated[list[Count], Field(min_length=1)]
    settings: Annotated[list[Setting], Field(min_length=1)]
    free: bool


class Writing(TypedDict):
    """Progressive in-context denoising: of so many pictures, so many first layers, for each of the tasks.

    `pairs` of the context, in which the share of exchanged words falls from `first` to `last`; `context`: see
    `denoising`; `named`: pictures of the context from which pictures are written for names; 0 for none; `shown`:
    pictures to look at.
    """

    __pydantic_config__ = STRICT
    tasks: list[str]
    pictures: Count
    layers: Count
    pairs: Count
    first: Share
    last: Share
    context: Context
    named: Natural
    shown: Natural


class SpaeInContext(PaperModule):
    """A tokenizer and a language model, both frozen.

    Args:
        language: arguments of `language.make_language`, those of the arm in `from`.
        tokenizer: arguments of `SpaeTokenizer` but for those that the language model decides, likewise.
        style: of prompts, a key of `prompts.STYLES`.
        classifying: see `Classifying`.
        writing: see `Writing`.
        texts: tasks on texts, see `TextTasks`: what the model can do before it sees a picture; null for none, as of a
            published model, which was not trained with the words that these need.
        few_shot: what these tasks are drawn from, see `documents.FewShot`; null likewise.
        pixel_scale: the stored value of white.

    Raises:
        ValueError: there is no such task, more layers are asked for than there are, texts lack few_shot, or the
            language model has too few words for them.
    """

    recipe_form = TokensRecipe
    predictor = "lightning_modules.spae.predictor.Namer"

    def __init__(
        self,
        *,
        language: LanguageSettings,
        tokenizer: TokenizerSettings,
        style: StyleName,
        classifying: Classifying,
        writing: Writing,
        texts: TextTasks | None,
        few_shot: FewShot | None,
        pixel_scale: Positive = 255.0,
    ):
        super().__init__()
        model = make_language(**language)
        self.published = language.get("hub") is not None
        self._language = Frozen(model)
        self.tokenizer = SpaeTokenizer(**{**tokenizer, **from_language(model)}).requires_grad_(False)
        if self.published and not model.embeddings.is_meta:
            self.tokenizer.table.fill(model.embeddings)
        self.prompts = Prompts(model, style)
        self.classifying, self.writing, self.texts, self.few_shot = classifying, writing, texts, few_shot
        self.pixel_scale, self.given = pixel_scale, False
        check_asked(classifying, writing, len(self.tokenizer.pyramid.tokens))
        if (texts is None) != (few_shot is None):
            raise ValueError("texts and few_shot belong together: set both, or both to null.")
        if texts is not None:
            check_tasks(texts, self.prompts, "texts")

    @property
    def language(self) -> Language:
        """The language model."""
        return self._language.network

    def forward(self, pictures: Shaped[Tensor, "batch 3 h w"]) -> Int[Tensor, "batch tokens"]:
        """The words of stored pictures, all layers, as ids of the language model."""
        return torch.cat(self.spelled(pictures), 1)

    @torch.no_grad()
    def spelled(self, pictures: Shaped[Tensor, "batch 3 h w"]) -> list[Int[Tensor, "batch _"]]:
        """The words of each layer of stored pictures, as ids of the language model."""
        pixels = pictures.to(self.device).float() / self.pixel_scale
        return [self.tokenizer.table.ids[words] for words in self.tokenizer.words_of(pixels)]

    @torch.no_grad()
    def named(
        self,
        context: UInt8[Tensor, "context 3 size size"],
        names: Sequence[str],
        queries: UInt8[Tensor, "queries 3 size size"],
        layers: int | None = None,
    ) -> list[dict]:
        """What the language model calls pictures, after a context of pictures with their names.

        Args:
            context: stored pictures.
            names: of each of them.
            queries: stored pictures that are asked about.
            layers: of words that are read; by default as many as are read at most in the few-shot tasks.

        Returns:
            For each query `answer`, the likeliest name, and `chances`, all names with their chances, the likeliest
            first.

        Raises:
            ValueError: there are not as many names as pictures, none at all, or the prompt is longer than the model's
                positions.
        """
        if not names or len(names) != len(context):
            raise ValueError(f"{len(context)} pictures have {len(names)} names: give each picture of the context one.")
        layers = layers or max(self.classifying["layers"])
        shown, asked = (torch.cat(self.spelled(x)[:layers], 1).tolist() for x in (context, queries))
        labels = list(dict.fromkeys(names))
        ids = {label: self.prompts.name(label) for label in labels}
        pairs = [(words, ids[name]) for words, name in zip(shown, names, strict=True)]
        found = []
        for words in asked:
            prompt = self.prompts.few_shot(pairs, words, list(ids.values()))
            likely = chances(self.language, prompt, list(ids.values())).tolist()
            ranked = sorted(zip(labels, likely, strict=True), key=lambda each: -each[1])
            found.append({"answer": ranked[0][0], "chances": ranked})
        return found

    @torch.no_grad()
    def drawn(self, words: Sequence[Int[Tensor, "batch _"]]) -> Float[Tensor, "batch 3 frames h w"]:
        """The pictures of words of the first layers, given as ids of the language model.

        Raises:
            ValueError: an id is that of no word of the table.
        """
        ids = self.tokenizer.table.ids
        place = torch.full((len(self.language.embeddings),), -1, device=ids.device)
        place[ids] = torch.arange(len(ids), device=ids.device)
        found = [place[each.to(ids.device)] for each in words]
        if any((each < 0).any() for each in found):
            raise ValueError("an id is that of no word of the table: only words of the table can be drawn.")
        return self.tokenizer.picture_of(found, len(found))

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the tokenizer of a trained `Spae`, and the language model of our own that it carries.

        Raises:
            ValueError: the weights are those of another module, or of other sizes.
        """
        self._take(weights, "the arm named by `from`")

    def export(self) -> dict[str, Tensor]:
        """The tokenizer, and a language model of our own."""
        own = {} if self.published else {f"language.{name}": x for name, x in self.language.state_dict().items()}
        return {f"tokenizer.{name}": x for name, x in self.tokenizer.state_dict().items()} | own

    def load_export(self, weights: Mapping[str, Tensor]) -> None:
        """Take over what `export` gave."""
        self._take(weights, "exported weights")

    def check_data(self, data: LightningDataModule) -> None:
        """Refuse data without few-shot tasks, and a tokenizer that no arm has given.

        Raises:
            ValueError: see above.
        """
        if not isinstance(data, Episodes):
            raise ValueError(f"data are {type(data).__name__}, expected few-shot tasks of spae.episodes.")
        if not self.given:
            raise ValueError("the tokenizer has no weights: name the arm that has them with `from` in the plan.")

    def _take(self, weights: Mapping[str, Tensor], what: str) -> None:
        parts = {"tokenizer": self.tokenizer} | ({} if self.published else {"language": self.language})
        for name, part in parts.items():
            own = {key.removeprefix(f"{name}."): x for key, x in weights.items() if key.startswith(f"{name}.")}
            load_strictly(part, own, f"the {name} of {what}")
        self.given = True

    @torch.no_grad()
    def predictions(self, data: Episodes, device: torch.device) -> dict[str, Tensor]:
        """What the language model answers and writes.

        `text/...`: see `language_training.text_tasks`; each seed has tasks of its own.
        `few_shot/<layers>_layers/<ways>_way_<shots>_shot_<repeats>_repeats`, with `_induced` where the labels are named
        first: `/masked`, `/exact` and `/overlap`, bool (episodes,), and `/right`, the chance of the right label among
        all of the task; a setting whose prompts are longer than the model's positions is left out.
        `left_out/<ways>_way_<shots>_shot`, where there are any: how many questions are not asked since two of their
        classes have one name, as ImageNet's two cranes. `generation/<task>/`
        `denoised`, `copied` and `voted`: shares (pictures,) of right words; `shown/<task>/` pictures.
        `named/...`: see `_from_names`.
        """
        self.to(device).eval()
        found = {}
        if self.texts is not None:
            found |= text_tasks(
                self.prompts, Writer(self.prompts, self.few_shot), self.texts, seed=TEXT_SEEDS + data.seed
            )
        for ways in self.classifying["ways"]:
            found |= self._classified(data, ways)
        return found | self._written(data) | self._from_names(data)

    def _classified(self, data: Episodes, ways: int) -> dict[str, Tensor]:
        kept: dict[int, list[Tensor]] = {}
        found = {}
        for shots in sorted({setting["shots"] for setting in self.classifying["settings"]}):
            asked = list(data.episodes(ways, shots))
            distinct = [episode for episode in asked if len({name.lower() for name in episode.labels}) == ways]
            if len(distinct) < len(asked):
                found[f"left_out/{ways}_way_{shots}_shot"] = torch.tensor([len(asked) - len(distinct)])
            read = [(episode, self._read(episode, kept)) for episode in distinct]
            for layers in self.classifying["layers"]:
                tasks = [
                    Task.of(self.prompts, episode, torch.cat(words[:layers], 1).tolist()) for episode, words in read
                ]
                for setting in self.classifying["settings"]:
                    if setting["shots"] == shots and tasks:
                        name = f"few_shot/{layers}_layers/{setting_name(ways, setting)}"
                        found |= {f"{name}/{key}": x for key, x in self._answered(tasks, setting).items()}
        return found

    def _read(self, episode: PictureEpisode, kept: dict[int, list[Tensor]]) -> list[Int[Tensor, "pictures _"]]:
        """The words of each layer of an episode's pictures; a picture that comes again is read once."""
        if episode.keys is None:
            return [words.cpu() for words in self.spelled(episode.pictures)]
        new = [place for place, key in enumerate(episode.keys) if key not in kept]
        if new:
            words = [each.cpu() for each in self.spelled(episode.pictures[new])]
            kept |= {episode.keys[place]: [each[row] for each in words] for row, place in enumerate(new)}
        rows = [kept[key] for key in episode.keys]
        return [torch.stack(layer) for layer in zip(*rows, strict=True)]

    def _answered(self, tasks: Sequence["Task"], setting: Setting) -> dict[str, Shaped[Tensor, " episodes"]]:
        asked = [task.prompt(self.prompts, setting) for task in tasks]
        longest = max(map(len, asked)) + 1 + max(len(name) for task in tasks for name in task.names)
        if longest > self.language.positions:
            return {}
        answers = torch.tensor([task.answer for task in tasks])
        likely = label_chances(self.language, asked, [task.names for task in tasks])
        found = {"masked": likely.argmax(1) == answers, "right": likely.gather(1, answers[:, None])[:, 0]}
        found["overlap"] = torch.tensor([task.overlap() == task.answer for task in tasks])
        if self.classifying["free"]:
            found["exact"] = exact(self.prompts, asked, [task.labels[task.answer] for task in tasks])
        return found

    def _written(self, data: Episodes) -> dict[str, Tensor]:
        """Pictures by progressive in-context denoising, task by task."""
        writing, found = self.writing, {}
        pictures = data.pictures(writing["pictures"])
        shares = falling(writing["first"], writing["last"], writing["pairs"])
        layers = writing["layers"]
        targets = [words.cpu() for words in self.spelled(pictures)[:layers]]
        for name in writing["tasks"]:
            shown = TASKS[name](pictures)
            conditions = [words.cpu() for words in self.spelled(shown)[:layers]]
            written = denoised(
                self.prompts, conditions, targets, self.tokenizer.table.ids.cpu(), shares=shares,
                context=writing["context"], seed=0,
            )  # fmt: skip
            found |= {f"generation/{name}/{key}": agreement(words, targets) for key, words in written.items()}
            if few := writing["shown"]:
                found[f"shown/{name}/condition"] = shown[:few].permute(0, 2, 3, 1).contiguous()
                found[f"shown/{name}/target"] = self._looked_at(targets, few)
                found[f"shown/{name}/denoised"] = self._looked_at(written["denoised"], few)
        return found

    def _looked_at(self, words: Sequence[Tensor], count: int) -> Shaped[Tensor, "pictures h w 3"]:
        return stored(self.drawn([each[:count] for each in words]).clamp(0, 1))[:, 0].cpu()

    def _from_names(self, data: Episodes) -> dict[str, Tensor]:
        """Pictures that names ask for: whether what was written for a name has most words in common with its class.

        `named/right`, bool (names,); `named/drawn`, uint8 (names h w 3), and `named/wanted`, the names as UTF-8 with
        zeros behind. The pictures of the context are not among those that are compared with.
        """
        count = self.writing["named"]
        names = data.named(self.writing["pictures"] + count)
        if not count or not names:
            return {}
        words = [each.cpu() for each in self.spelled(data.pictures(len(names)))[: self.writing["layers"]]]
        wanted = sorted(set(names[:count]) & set(names[count:]))
        if not wanted:
            return {}
        written = torch.cat(
            from_names(self.prompts, names[:count], [each[:count] for each in words], wanted,
                       self.tokenizer.table.ids.cpu()), 1,
        )  # fmt: skip
        others, called = torch.cat(words, 1)[count:], names[count:]
        same = (written[:, None] == others[None]).double().mean(2)  # (wanted, others)
        of_class = torch.stack([same[:, [each == name for each in called]].mean(1) for name in wanted], 1)
        drawn = self.drawn(written.split([len(each[0]) for each in words], dim=1)).clamp(0, 1)
        return {
            "named/right": of_class.argmax(1) == torch.arange(len(wanted)),
            "named/drawn": stored(drawn)[:, 0].cpu(),
            "named/wanted": torch.from_numpy(encoded(wanted)),
        }

    def facts(self) -> dict:
        """Sizes, the numbers of words of each layer, and the settings of few-shot classification."""
        return {
            "parameters": count_parameters(self.tokenizer),
            "language_parameters": count_parameters(self.language),
            "tokens": list(self.tokenizer.pyramid.tokens),
            "settings": [
                f"{layers}_layers/{setting_name(ways, setting)}"
                for layers, ways, setting in product(*(self.classifying[key] for key in ("layers", "ways", "settings")))
            ],
        }

    def to_transformers(self) -> NoReturn:
        """Refused.

        Raises:
            ValueError: always.
        """
        raise ValueError(NO_CLASS)

    def compiled_parts(self) -> Iterable[torch.nn.Module]:
        """Nothing is trained."""
        return ()


class Task:
    """A few-shot task in words.

    Args:
        labels: the classes' names, in the order in which they come.
        names: of the labels, their ids.
        pairs: words of each picture of the context, and the place of its label.
        query: words of the picture that is asked about.
        answer: place of its label.
    """

    def __init__(
        self,
        labels: list[str],
        names: list[list[int]],
        pairs: list[tuple[list[int], int]],
        query: list[int],
        answer: int,
    ):
        self.labels, self.names, self.pairs, self.query, self.answer = labels, names, pairs, query, answer

    @classmethod
    def of(cls, prompts: Prompts, episode: PictureEpisode, words: list[list[int]]) -> "Task":
        """The task of an episode whose pictures have these words, the query's last.

        Raises:
            ValueError: the query's class is not in the context.
        """
        labels = episode.labels
        if episode.answer not in labels:
            raise ValueError(f"the query shows {episode.answer!r}, but the context has only {', '.join(labels)}.")
        places = [labels.index(name) for name in episode.names]
        pairs = list(zip(words[:-1], places, strict=True))
        return cls(labels, [prompts.name(label) for label in labels], pairs, words[-1], labels.index(episode.answer))

    def prompt(self, prompts: Prompts, setting: Setting) -> list[int]:
        """The prompt of a setting."""
        pairs = [(words, self.names[label]) for words, label in self.pairs]
        return prompts.few_shot(pairs, self.query, self.names if setting["induced"] else (), setting["repeats"])

    def overlap(self) -> int:
        """The class whose inputs have most words in common with the query, at the same places; the first of equals."""
        common = [0.0] * len(self.labels)
        for words, label in self.pairs:
            common[label] += sum(a == b for a, b in zip(words, self.query, strict=True))
        return max(range(len(common)), key=common.__getitem__)


def setting_name(ways: int, setting: Setting) -> str:
    """What a setting is called."""
    induced = "_induced" if setting["induced"] else ""
    return f"{ways}_way_{setting['shots']}_shot_{setting['repeats']}_repeats{induced}"


def check_asked(classifying: Classifying, writing: Writing, layers: int) -> None:
    """Refuse tasks that there are not, and more layers than the tokenizer has.

    Raises:
        ValueError: see above.
    """
    if unknown := [name for name in writing["tasks"] if name not in TASKS]:
        raise ValueError(f"writing.tasks has {unknown[0]!r}, expected some of {', '.join(TASKS)}.")
    most = max(*classifying["layers"], writing["layers"])
    if most > layers:
        raise ValueError(f"{most} layers of words are asked for, but the tokenizer has {layers}: ask for fewer.")
    falling(writing["first"], writing["last"], writing["pairs"])
