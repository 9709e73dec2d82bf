"""Prompts are ids, answers are held to the protocol, and what a frozen model writes is held against its context."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from lightning_modules.files import ROOT
from lightning_modules.spae import denoising, lexicon
from lightning_modules.spae.denoising import TASKS, agreement, corrupted, denoised, falling, from_names
from lightning_modules.spae.documents import Draws, Texts, Writer, held_out_episodes
from lightning_modules.spae.episodes import PictureEpisode, centred
from lightning_modules.spae.in_context import Task, check_asked, setting_name
from lightning_modules.spae.in_context_evaluation import classified, learns, written
from lightning_modules.spae.language import make_language
from lightning_modules.spae.language_evaluation import text_scores
from lightning_modules.spae.language_training import check_tasks
from lightning_modules.spae.prompts import Prompts, chances, continued, exact, masked
from lightning_modules.vision_language.causal import Language

FEW_SHOT = {"input_words": [1, 5], "ways": [2, 3], "kept": 3, "in_common": 0.3, "induced": 0.5}


@pytest.fixture(scope="module")
def prompts():
    torch.manual_seed(0)
    language = make_language(
        hidden_size=16, layers=["convolution", "attention"], heads=1, mlp_dim=16, kernel=3, positions=256
    )
    return Prompts(language.eval())


class Copier(Language):
    """A model that says what followed the last earlier place with the same token: perfect at repetitions."""

    def __init__(self, real):
        nn.Module.__init__(self)
        self.tokenizer, self.no_words, self._whole = real.tokenizer, real.no_words, real._whole

    def forward(self, token_ids, keep=0):
        logits = torch.zeros(len(token_ids), token_ids.shape[1], len(self.embeddings))
        for row, ids in enumerate(token_ids.tolist()):
            for place in range(len(ids)):
                for size in (4, 3, 2, 1):  # the longest context that comes again
                    ends = [
                        p
                        for p in range(size - 1, place)
                        if ids[p - size + 1 : p + 1] == ids[place - size + 1 : place + 1]
                    ]
                    if place >= size - 1 and ends:
                        logits[row, place, ids[ends[-1] + 1]] = 9.0
                        break
        return logits[:, -keep:]

    def cached(self):
        read = []

        def step(new):
            read.append(new)
            return self(torch.cat(read, 1), keep=1)[:, -1]

        return step


@pytest.fixture(scope="module")
def copier(prompts):
    return Prompts(Copier(prompts.language))


def ids(prompts, *words):
    return [prompts.name(word)[0] for word in words]


def test_a_prompt_names_the_labels_and_repeats_the_context(prompts):
    pairs = [(ids(prompts, "red", "lion"), prompts.name("silk")), (ids(prompts, "blue", "moon"), prompts.name("salt"))]
    prompt = prompts.few_shot(
        pairs, ids(prompts, "red", "mouse"), [prompts.name("silk"), prompts.name("salt")], repeats=1
    )
    context = "input: red lion output: silk input: blue moon output: salt"
    assert prompts.language.decode(prompt) == (
        f"output is one silk or salt . {context} {context} input: red mouse output:"
    )
    assert prompts.language.decode(prompts.few_shot(pairs, [])) == f"{context} input: output:"


def test_words_stay_ids_where_a_text_would_be_cut_otherwise(prompts):
    special = lexicon.TOKENS.index(lexicon.UNKNOWN)
    prompt = prompts.few_shot([([special, special], prompts.name("silk"))], [special])
    assert prompt.count(special) == 3


def test_masked_decoding_takes_the_likeliest_label_only(prompts, copier):
    red, moon, silk, salt = ids(prompts, "red", "moon", "silk", "salt")
    asked = copier.few_shot([([red], [silk]), ([moon], [salt])], [moon])
    assert masked(copier.language, [asked], [[[silk], [salt]]]).tolist() == [1]
    assert masked(copier.language, [asked], [[[silk], [red]]]).tolist() == [0]  # equally unlikely: the first


def test_labels_of_several_tokens_are_compared_by_their_whole_chance(copier):
    red, moon, silk, salt = ids(copier, "red", "moon", "silk", "salt")
    asked = copier.few_shot([([red], [silk, red]), ([moon], [salt, moon])], [moon])
    names = [[silk, red], [salt, moon], [salt, red]]
    assert masked(copier.language, [asked], [names]).tolist() == [1]
    found = chances(copier.language, asked, names)
    assert found.sum().item() == pytest.approx(1) and found.argmax() == 1 and found[1] > 100 * found[2]


def test_of_one_token_chances_are_those_of_the_next_word(prompts):
    asked = prompts.few_shot([(ids(prompts, "red"), prompts.name("silk"))], ids(prompts, "red"))
    names = [[each] for each in ids(prompts, "silk", "salt", "moon")]
    logits = prompts.language(torch.tensor([asked]), keep=1)[0, -1, [name[0] for name in names]]
    torch.testing.assert_close(chances(prompts.language, asked, names), logits.softmax(0).detach())


def test_an_exact_match_is_the_whole_name_and_nothing_more(copier):
    red, moon = ids(copier, "red", "moon")
    silk, salt = copier.name("silk"), [*copier.name("salt"), *copier.name("sand")]
    asked = copier.few_shot([([red], silk), ([moon], salt)], [moon])
    assert exact(copier, [asked], ["salt sand"]).tolist() == [True]
    assert exact(copier, [asked], ["salt"]).tolist() == [False]
    assert exact(copier, [asked], ["Salt Sand"]).tolist() == [True]


def test_prompts_of_different_lengths_are_answered_as_one_by_one(prompts):
    asked = [
        ids(prompts, "red", "lion"),
        ids(prompts, "moon"),
        ids(prompts, "silk", "salt", "red"),
        ids(prompts, "red", "owl"),
    ]
    together = continued(prompts.language, asked, 3)
    assert torch.equal(together, torch.cat([continued(prompts.language, [each], 3) for each in asked]))


def test_only_allowed_words_are_written(prompts):
    allowed = torch.zeros(len(prompts.language.embeddings), dtype=torch.bool)
    allowed[ids(prompts, "red", "moon")] = True
    found = continued(prompts.language, [ids(prompts, "silk")], 5, allowed)
    assert set(found.flatten().tolist()) <= set(ids(prompts, "red", "moon"))


@pytest.mark.parametrize("label", ["", "zyzzyva", "red zyzzyva"])
def test_a_label_that_cannot_be_spelt_is_refused(prompts, label):
    with pytest.raises(ValueError, match="do not spell it"):
        prompts.name(label)


def test_an_empty_prompt_and_one_that_is_too_long_are_refused(prompts):
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        continued(prompts.language, [[5], []], 1)
    with pytest.raises(ValueError, match="258 tokens are longer than the 256 positions"):
        continued(prompts.language, [[5] * 256], 2)
    with pytest.raises(ValueError, match="has no token"):
        chances(prompts.language, [5], [[7], []])


@pytest.fixture
def writer(prompts):
    return Writer(prompts, FEW_SHOT, ["a red circle at the middle left in the meadow"])


def test_held_out_labels_are_labels_in_no_text(writer, prompts):
    draws, found = Draws((0, 1)), set()
    output = prompts.pieces["output"][0]
    for _ in range(300):
        token_ids, answers = writer.document(draws, "few_shot", 96)
        assert len(token_ids) == len(answers) == 96
        labels = {token for token, answer in zip(token_ids, answers, strict=True) if answer}
        assert all(token_ids[place - 1] == output for place, answer in enumerate(answers) if answer)
        found |= labels
    assert len(found) > 200 and not found & set(writer.held_out.tolist())
    episodes = held_out_episodes(writer, 20, seed=0, ways=2, shots=1, size=5, kept=3, induced=True)
    assert all(set(episode.labels) <= set(writer.held_out.tolist()) for episode in episodes)


def test_inputs_of_a_class_keep_as_many_words_as_asked_for(writer):
    draws = Draws((0, 2))
    for kept in (1, 3, 5):
        words = draws.distinct(writer.words, 5)
        same = [(np.array(writer._member(draws, words, kept)) == words).sum() for _ in range(200)]
        assert min(same) == kept and np.mean(same) < kept + 0.1


def test_what_is_marked_in_repetitions_stood_there_before(writer):
    draws = Draws((0, 3))
    for _ in range(50):
        token_ids, answers = writer.document(draws, "repetitions", 96)
        known = [place for place, answer in enumerate(answers) if answer]
        assert known and all(token_ids[place] in token_ids[:place] for place in known)


def test_a_perfect_copier_solves_the_tasks_whose_inputs_are_equal(writer, copier):
    """So the tasks can be solved from the prompt, by exact matching of one word where all are kept."""
    writer.prompts = copier
    episodes = held_out_episodes(writer, 40, seed=0, ways=2, shots=1, size=5, kept=5, induced=True)
    asked = [episode.prompt for episode in episodes]
    found = masked(copier.language, asked, [[[label] for label in episode.labels] for episode in episodes])
    assert found.tolist() == [episode.answer for episode in episodes]


def texts(prompts, **changes):
    settings = {
        "folder": Path(), "seed": 3, "splits": {"train": {"source": "train", "rows": None}}, "steps": 4,
        "batch_size": 8, "evaluation_batch_size": 8, "length": 48, "shares": {"captions": 0.25, "repetitions": 0.25},
        "few_shot": FEW_SHOT,
    }  # fmt: skip
    found = Texts(**settings | changes)
    found.for_language(prompts.language)
    found.__dict__["writers"] = {"train": Writer(prompts, FEW_SHOT, ["a red circle in the meadow"])}
    return found


def test_a_batch_of_texts_depends_on_seed_epoch_and_place_only(prompts):
    first, again, other = texts(prompts), texts(prompts), texts(prompts, seed=4)
    batches = [each.train_dataloader().dataset for each in (first, again, other)]
    taken = [[each[at]["token_ids"] for at in ((0, 1), (0, 2), (1, 1))] for each in batches]
    assert all(torch.equal(a, b) for a, b in zip(taken[0], taken[1], strict=True))
    assert not torch.equal(taken[0][0], taken[2][0]) and not torch.equal(taken[0][0], taken[0][2])
    assert taken[0][0].shape == (8, 48)


def test_texts_refuse_shares_beyond_all_and_a_split_for_tests(prompts):
    with pytest.raises(ValueError, match="more than 1 together"):
        texts(prompts, shares={"captions": 0.75, "repetitions": 0.5})
    with pytest.raises(ValueError, match="expected train and possibly val"):
        texts(prompts, splits={"test": {"source": "test", "rows": None}})


def test_labels_need_words_that_were_kept_out(prompts, monkeypatch):
    monkeypatch.setattr(Language, "whole_words", lambda _: (torch.tensor([7, 8]), ["red", "silk"]))
    with pytest.raises(ValueError, match="1 of the words kept out of training"):
        Writer(prompts, FEW_SHOT)


def test_texts_of_more_words_than_there_are_are_refused(prompts):
    with pytest.raises(ValueError, match=r"few_shot asks for 3 classes of 200 words, .* few_shot.input_words to 96 at"):
        Writer(prompts, FEW_SHOT | {"input_words": [1, 200]})


TASKS_ON_TEXTS = {"episodes": 4, "ways": [2], "shots": [1], "input_words": 5, "kept": [3]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ways": [2, 40]}, "texts.ways asks for 40 labels, but 32 of the words kept out of training"),
        ({"input_words": 200}, "texts asks for 2 classes of 200 words, but the language model has 288 whole words"),
        ({"shots": [1, 40]}, r"positions of the language model: set texts\.ways, shots or input_words to less"),
        ({"kept": [3, 9]}, "texts.kept has 9, but texts.input_words is 5: keep that many at most"),
    ],
)
def test_tasks_on_texts_that_cannot_be_drawn_are_refused(prompts, changes, message):
    with pytest.raises(ValueError, match=message):
        check_tasks(TASKS_ON_TEXTS | changes, prompts, "texts")


def test_a_label_that_is_not_known_names_one_that_is_close(prompts):
    with pytest.raises(ValueError, match=r"'lionn' .* knows, such as lion"):
        prompts.name("lionn")


def episode(names, answer):
    return PictureEpisode(torch.zeros(len(names) + 1, 3, 4, 4, dtype=torch.uint8), names, answer)


def test_a_task_takes_the_query_last_and_never_its_answer(prompts):
    red, moon, lion = ids(prompts, "red", "moon", "lion")
    task = Task.of(prompts, episode(["silk", "salt"], "salt"), [[red, lion], [moon, lion], [moon, red]])
    assert (task.labels, task.answer, task.query) == (["silk", "salt"], 1, [moon, red])
    prompt = task.prompt(prompts, {"shots": 1, "repeats": 0, "induced": False})
    assert prompt.count(prompts.name("salt")[0]) == 1  # of its own picture in the context
    assert task.overlap() == 1
    with pytest.raises(ValueError, match="the query shows 'moon'"):
        Task.of(prompts, episode(["silk", "salt"], "moon"), [[red], [moon], [red]])


def test_settings_have_the_names_of_the_protocol():
    assert setting_name(2, {"shots": 1, "repeats": 0, "induced": False}) == "2_way_1_shot_0_repeats"
    assert setting_name(5, {"shots": 1, "repeats": 3, "induced": True}) == "5_way_1_shot_3_repeats_induced"


def test_corruption_exchanges_exactly_its_share():
    words = torch.full((6, 20), 7)
    found = corrupted(words, 0.25, torch.tensor([8, 9]), Draws((0, 4)))
    assert ((found != words).sum(1) == 5).all() and set(found.unique().tolist()) == {7, 8, 9}
    assert torch.equal(corrupted(words, 0.0, torch.tensor([8]), Draws((0, 4))), words)
    assert falling(0.5, 0.2, 4) == pytest.approx([0.5, 0.4, 0.3, 0.2])
    with pytest.raises(ValueError, match="the first not below the last"):
        falling(0.1, 0.2, 3)


def layers(*sizes, count=3, seed=0):
    drawn = np.random.default_rng(seed)
    return [torch.from_numpy(drawn.choice(np.arange(20, 200), (count, size), replace=False)) for size in sizes]


def test_a_copier_writes_the_target_of_a_context_that_is_not_corrupted(copier):
    conditions, targets = layers(1, 4), layers(1, 4, seed=1)
    found = denoised(copier, conditions, targets, torch.arange(20, 200), shares=[0.0, 0.0], context="own", seed=0)
    for words in found.values():
        assert agreement(words, targets).tolist() == [1, 1, 1]


def test_the_vote_of_a_corrupted_context_is_better_than_its_last_pair(prompts):
    targets = layers(4, 12)
    found = denoised(
        prompts, targets, targets, torch.arange(20, 200), shares=falling(0.5, 0.25, 6), context="own", seed=0
    )
    copied, voted = (agreement(found[name], targets).mean().item() for name in ("copied", "voted"))
    assert copied == pytest.approx(0.75, abs=0.03) and voted > 0.85
    assert {x.shape for x in found["denoised"]} == {(3, 4), (3, 12)}


def test_a_context_of_others_never_shows_the_querys_own_picture():
    for row in range(3):
        assert row not in denoising._shown(row, 3, 7, "others")
    assert denoising._shown(1, 3, 2, "own") == [1, 1]


def test_a_name_asks_for_the_words_of_its_pictures(copier):
    words = layers(1, 4)
    found = from_names(copier, ["silk", "salt", "sand"], words, ["sand", "silk"], torch.arange(20, 200))
    assert torch.equal(torch.cat(found, 1), torch.cat(words, 1)[[2, 0]])
    with pytest.raises(ValueError, match="no picture of the context is called 'moon'"):
        from_names(copier, ["silk"], words, ["moon"], torch.arange(20, 200))


def test_pictures_of_others_need_others(prompts):
    words = layers(1, count=1)
    with pytest.raises(ValueError, match="there is 1 picture"):
        denoised(prompts, words, words, torch.arange(20, 200), shares=[0.0], context="others", seed=0)


@pytest.mark.parametrize("name", TASKS)
def test_tasks_keep_the_size_and_change_the_picture(name):
    pictures = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16), np.uint8))
    found = TASKS[name](pictures)
    assert found.shape == pictures.shape and found.dtype == torch.uint8 and not torch.equal(found, pictures)


def test_tasks_show_what_they_say():
    pictures = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(1, 3, 8, 8)
    inside, outside = TASKS["inpainting"](pictures)[0, 0], TASKS["outpainting"](pictures)[0, 0]
    assert (inside[2:6, 2:6] == 128).all() and torch.equal(inside[:2], pictures[0, 0, :2])
    assert torch.equal(outside[2:6, 2:6], pictures[0, 0, 2:6, 2:6]) and (outside[:2] == 128).all()
    assert torch.equal(TASKS["translation"](pictures)[..., 2:], pictures[..., :6])
    assert TASKS["rotation"](pictures)[0, 0, 0].tolist() == pictures[0, 0, :, 0].flip(0).tolist()


def test_pictures_are_cut_to_their_middle_square():
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 200
    assert (centred(image, 6) == 200).all()


WRITING = {"tasks": ["inpainting"], "layers": 2, "pairs": 2, "first": 0.5, "last": 0.2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["colouring"]}, "'colouring', expected some of inpainting"),
        ({"layers": 4}, "4 layers of words are asked for, but the tokenizer has 3"),
        ({"last": 0.6}, "the first not below the last"),
    ],
)
def test_tasks_that_there_are_not_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check_asked({"layers": [1]}, WRITING | changes, 3)


def test_scores_are_means_over_episodes_and_settings():
    right = {True: np.array([True, True, False, False]), False: np.array([True, False, False, False])}
    arrays = {
        "few_shot/2_layers/2_way_1_shot_0_repeats/masked": right[True],
        "few_shot/2_layers/2_way_3_shot_0_repeats_induced/masked": right[False],
        "few_shot/2_layers/2_way_1_shot_0_repeats/exact": right[False],
        "few_shot/1_layers/2_way_1_shot_0_repeats/masked": right[True],
        "few_shot/2_layers/2_way_1_shot_0_repeats/right": np.array([0.25, 0.75, 0.5, 0.7], np.float32),
    }
    found = classified(arrays, 2)
    assert found["2_way_1_shot_0_repeats/masked_percent"] == 50
    assert found["2_way/mean_percent"] == found["2_way/2_layers/mean_percent"] == 37.5
    assert found["2_way/1_layers/mean_percent"] == 50 and found["2_way_1_shot_0_repeats/exact_percent"] == 25
    assert found["2_way/chance_percent"] == 50
    assert found["2_way/right_mean_percent"] == found["2_way_1_shot_0_repeats/right_percent"] == pytest.approx(55)
    assert not [name for name in found if "best" in name]
    for repeats, share in ((0, False), (3, True)):
        arrays[f"few_shot/2_layers/2_way_1_shot_{repeats}_repeats_induced/exact"] = right[share]
    arrays["few_shot/2_layers/2_way_3_shot_0_repeats_induced/exact"] = right[True]
    best = {name: share for name, share in classified(arrays, 2).items() if "best" in name}
    assert best == {"2_way_1_shot_best_repeats_induced/exact_percent": 50}
    with pytest.raises(ValueError, match=r"layers is 3, but words of \[1, 2\] layers were read"):
        classified(arrays, 3)


def test_written_words_are_means_over_tasks():
    arrays = {
        f"generation/{task}/{kind}": np.array([value])
        for task, value in (("inpainting", 0.5), ("rotation", 1.0)) for kind in ("denoised", "copied", "voted")
    }  # fmt: skip
    assert written(arrays)["denoised/token_percent"] == 75
    assert written({}) == {}


def test_a_model_that_guesses_on_texts_is_not_asked_about_pictures():
    tasks = {"text/2_way_1_shot_3_kept/masked": np.arange(200) % 2 == 0}
    learnt, why = learns(tasks, 0.6)
    assert not learnt and "does not learn in context on texts: 43.1 to 56.9 %" in why
    assert learns({"text/2_way_1_shot_3_kept/masked": np.arange(200) % 5 > 0}, 0.6) == (True, "")
    assert learns({}, None) == (True, "")
    with pytest.raises(ValueError, match="no tasks on texts of 2 ways"):
        learns({}, 0.6)
    assert text_scores(tasks)["text/2_way/accuracy_percent"] == 50


FACTS = yaml.safe_load((ROOT / "lightning_modules/spae/facts.yaml").read_text())
ORACLES = {oracle["name"]: oracle for oracle in FACTS["oracles"]}


@pytest.mark.parametrize("ways", [2, 5])
@pytest.mark.parametrize("method", ["frozen", "lqae"])
def test_one_shot_figures_with_induction_are_the_best_over_repeats(ways, method):
    """Two sources agree: columns that are recalled, and the two columns of De-Diffusion's table."""
    without, once, _, _, *repeated = map(float, ORACLES[f"few-shot-{ways}-{method}"]["percent"].split(","))
    table = f"{'two' if ways == 2 else 'five'}-way-one-shot"
    assert (without, max(once, *repeated)) == (ORACLES[table][method], ORACLES[f"{table}-induction"][method])
    mean = (without + once + sum(map(float, ORACLES[f"few-shot-{ways}-{method}"]["percent"].split(",")[2:]))) / 7
    assert mean == pytest.approx(ORACLES[f"few-shot-mean-{ways}"][method], abs=0.05)
