"""Every data module: what processes and accumulated batches see together is what one process sees, row by row."""

import importlib
import inspect
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import LightningDataModule

from lightning_modules import settings
from lightning_modules.camvig.clips import CameraClips
from lightning_modules.datamodules.illustrated import IllustratedTexts
from lightning_modules.datamodules.labelled import LabelledImages
from lightning_modules.datamodules.masked_texts import MaskedTexts
from lightning_modules.datasets import flickr30k, sounds
from lightning_modules.datasets.download import MIRROR_VARIABLE
from lightning_modules.datasets.video import with_sound
from lightning_modules.fgla.clips import TimelapseClips
from lightning_modules.imp.captioned_pictures import StreamedCaptions
from lightning_modules.imp.captioned_videos import CaptionedVideos
from lightning_modules.imp.modality_rows import ModalityRows
from lightning_modules.imp.sound_files import SoundFiles
from lightning_modules.lf_vila.clips import EventClips
from lightning_modules.movinet.clips import LabelledClips
from lightning_modules.spae.documents import Texts
from lightning_modules.spae.language import make_language
from lightning_modules.video_tokens.clips import Clips
from lightning_modules.videopoet.clips import SoundingClips
from lightning_modules.vision_language.causal import make_causal
from lightning_modules.visual_parsing.pictures import AskedPictures
from tests.datamodules import test_annotated_videos as annotated_videos
from tests.datamodules import test_streamed as streamed
from tests.datamodules import test_video_clips as video_clips
from tests.datamodules import test_video_file_texts as video_file_texts
from tests.datamodules import test_video_texts as video_texts
from tests.datasets.video import test_posed as posed
from tests.hd_vila import test_hybrid_clips as hybrid_clips
from tests.movinet import test_clip_files as clip_files
from tests.pipeline import ROOT
from tests.unified_t2i_i2t import test_evaluation as captioned
from tests.videopoet import test_sound as sounding
from tests.visual_parsing import test_official as official

pictures, videos, clips, scenes = streamed.folder, video_file_texts.home, video_texts.folder, captioned.folder
annotated, actions, to_generate = annotated_videos.home, clip_files.home, video_clips.home
DRAWN = {"train": {"source": "train", "rows": 40}}
PART = {"train": {"source": "train", "rows": None}, "val": {"source": "train", "rows": 6}}
WAYS = ["one network", "copies", "streamed", "streamed in part", "captioned", "clips", "clips by class", "files",
        "long videos", "runs",
        "hybrid clips", "labelled clips", "labelled copies", "numbered clips", "event clips", "clip files",
        "videos to generate", "texts", "sounding clips", "camera clips", "time lapses", "posed videos",
        "sounding videos", "illustrated texts", "illustrated regions", "masked texts", "modalities", "sound files",
        "captioned crops", "captioned videos", "asked pictures", "official pictures",
        "tasks joined", "tasks in turn", "tasks by intervals", "tasks by weights"]  # fmt: skip


@pytest.fixture
def modules(pictures, videos, clips, scenes, annotated, actions, to_generate, prepared, tmp_path, monkeypatch):
    """Functions that make each data module in each of its ways."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: [])  # decode in this process
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)  # it wins over the folder of the videos
    labelled = dict(folder=prepared("digits"), seed=1, splits={"train": {"source": "all", "rows": 100}}, batch_size=8,
                    evaluation_batch_size=8, augmentation="crop_flip")  # fmt: skip
    resident = dict(seed=1, splits={"train": {"source": "val", "rows": 40}}, batch_size=8, evaluation_batch_size=8)
    events = dict(splits={"train": {"source": "val", "rows": 96}}, text_length=5, frames=8, batch_size=32)
    return {
        "one network": lambda: LabelledImages(**labelled),
        "copies": lambda: LabelledImages(**labelled, copies=2),
        "streamed": lambda: streamed.data(pictures, batch_size=8),
        "streamed in part": lambda: streamed.data(pictures, batch_size=8, splits=PART),
        "captioned": lambda: captioned.data(scenes),
        "clips": lambda: video_texts.data(clips, splits=DRAWN),
        "clips by class": lambda: video_texts.data(clips, splits=DRAWN, batches="classes"),
        "files": lambda: video_file_texts.data(videos),
        "long videos": lambda: annotated_videos.data(annotated),
        "runs": lambda: annotated_videos.data(annotated, "long_videos"),
        "hybrid clips": lambda: hybrid_clips.data(annotated),
        "labelled clips": lambda: LabelledClips(folder=prepared("world_actions"), **resident),
        "labelled copies": lambda: LabelledClips(folder=prepared("world_actions"), copies=2, **resident),
        "numbered clips": lambda: Clips(folder=prepared("world_drifting"), **resident),
        "event clips": lambda: EventClips(folder=prepared("world_long_clips"), **resident | events),
        "clip files": lambda: clip_files.data(actions),
        "videos to generate": lambda: video_clips.data(to_generate),
        "texts": lambda: texts(prepared("world_plain")),
        "sounding clips": lambda: SoundingClips(folder=prepared("world_sounding"), **resident),
        "camera clips": lambda: CameraClips(folder=prepared("world_camera"), share=0.5, **resident),
        "time lapses": lambda: TimelapseClips(folder=prepared("world_timelapse"), window=3, **resident),
        "posed videos": lambda: posed.of_new_files(tmp_path / "posed"),
        "sounding videos": lambda: sounding.of_new_files(tmp_path / "sounding", monkeypatch),
        "illustrated texts": lambda: illustrated(prepared("world_pairs")),
        "illustrated regions": lambda: illustrated(prepared("world_quadrants"), length=4, regions=0.4),
        "masked texts": lambda: MaskedTexts(folder=prepared("world_many") / "texts", text_length=24, **resident),
        "modalities": lambda: ModalityRows(
            folder=prepared("world_many") / "pairs", modalities=["images", "text"], text_length=16, **resident
        ),
        "sound files": lambda: sound_files(tmp_path / "sounds"),
        "captioned crops": lambda: captioned_crops(tmp_path / "crops"),
        "captioned videos": lambda: captioned_videos(tmp_path / "captioned"),
        "asked pictures": lambda: AskedPictures(
            folder=prepared("world_asked"), task="entailment", tokenizer="asked", text_length=14, **resident
        ),
        "official pictures": lambda: official.data(tmp_path / "official", "entailment", batch_size=8),
        "tasks joined": lambda: alternating(prepared("world_many"), "joint"),
        "tasks in turn": lambda: alternating(prepared("world_many"), "alternate"),
        "tasks by intervals": lambda: alternating(prepared("world_many"), "interval"),
        "tasks by weights": lambda: alternating(prepared("world_many"), "weighted"),
    }


def sound_files(folder):
    """Short tones, of which a second is shown from anywhere on, the rest of it silent."""
    if not folder.exists():
        settings_ = {"name": "fsdd", "form": "fsdd", "splits": {"train": {"takes": [5, 49]}}, "sounds": "recordings"}
        made = sounds.stand_in(folder, rows=40, num_classes=10, **settings_)
        sounds.prepare(folder / "index", num_classes=10, **settings_, **made.config)
    drawn = {"train": {"source": "train", "rows": 33}}
    return SoundFiles(folder=folder / "index", seed=1, splits=drawn, sample_rate=8000, seconds=0.25, batch_size=8,
                      evaluation_batch_size=8, max_broken=0.0)  # fmt: skip


def captioned_crops(folder):
    """Drawn pictures with five captions each, encoded."""
    if not folder.exists():
        folder.mkdir()
        made = flickr30k.stand_in(folder, rows=24, splits={"train": 24})
        flickr30k.prepare(folder / "prepared", limit=None, **made.config)
    return StreamedCaptions(folder=folder / "prepared", seed=1, splits={"train": {"source": "train", "rows": None}},
                            batch_size=8, evaluation_batch_size=8, image_size=16, crop_scale=[0.2, 1.0],
                            text_length=6)  # fmt: skip


def captioned_videos(folder):
    """Clips of one film that begin anywhere, with their sound."""
    if not folder.exists():
        folder.mkdir()
        corpus = {"name": "drawn", "corpus": "didemo", "splits": {"train": {"annotations": "train_data.json"}}}
        made = with_sound.stand_in(folder, rows=17, **corpus)
        with_sound.prepare(folder / "prepared", **corpus | made.config)
    return CaptionedVideos(folder=folder / "prepared", seed=1, splits={"train": {"source": "train", "rows": None}},
                           text_length=6, frames=3, rate=10.0, size=16, sample_rate=4000, batch_size=8,
                           evaluation_batch_size=8, max_broken=0.0)  # fmt: skip


def alternating(folder, schedule):
    """Three tasks, of which one has few rows, so that it begins again in the middle of an epoch."""
    home = "lightning_modules.datamodules"
    few = {"splits": {"train": {"source": "val", "rows": 24}}}
    data = {
        "images": {"_target_": f"{home}.labelled.LabelledImages"},
        "texts": {"_target_": f"{home}.masked_texts.MaskedTexts", "text_length": 24, "pairs": True, **few},
        "clips": {
            "_target_": "lightning_modules.imp.modality_rows.ModalityRows",
            "modalities": ["video", "audio"],
            "label": "label",
        },
    }
    shown = [{"frames": 4, "height": 16, "width": 16, "drop": 0.5}, {"height": 32, "width": 32, "drop": 0.0}]
    tasks = {
        name: {"part": name, "weight": weight, "interval": interval, "resolutions": resolutions, "data": data[name]}
        for name, weight, interval, resolutions in (
            ("images", 1.0, 1, None), ("texts", 2.0, 2, None), ("clips", 1.0, 3, shown)
        )
    }  # fmt: skip
    block = {"_target_": f"{home}.alternating.Alternating", "splits": {"train": {"source": "val", "rows": 40}},
             "batch_size": 8, "evaluation_batch_size": 8, "schedule": schedule, "steps": 7, "tasks": tasks}  # fmt: skip
    return settings.bind(block, "data", folder=folder, seed=1)()


def texts(folder):
    """Texts for a language model that knows no word yet."""
    few_shot = {"input_words": [1, 5], "ways": [2], "kept": 5, "in_common": 0.5, "induced": 0.5}
    made = Texts(folder=folder, seed=1, splits={"train": {"source": "val", "rows": 40}}, steps=5, batch_size=8,
                 evaluation_batch_size=8, length=48, shares={"captions": 0.25, "repetitions": 0.25},
                 few_shot=few_shot)  # fmt: skip
    sizes = {"hidden_size": 16, "layers": ["convolution", "attention"], "heads": 2, "mlp_dim": 16, "kernel": 4}
    made.for_language(make_language(**sizes, positions=64))
    return made


def illustrated(folder, length=6, regions=0.0):
    """Pictures with captions or questions, or phrases of regions, all cut to one length; some without their picture."""
    made = IllustratedTexts(folder=folder, seed=1, splits={"train": {"source": "val", "rows": 40}}, batch_size=8,
                            evaluation_batch_size=8, length=length, questions=0.4, regions=regions,
                            text_only=0.2, padding="right",
                            form={"caption": "", "question": "{}", "sampled": False})  # fmt: skip
    made.for_models(make_causal(hidden_size=16, layers=1, heads=2, kv_heads=1, mlp_dim=16, positions=64))
    return made


def epoch(module, rank=0, processes=1, accumulated=1, done=None):
    """All batches that one process gets in the second epoch, in which `done` are done if the training is resumed."""
    module.trainer = SimpleNamespace(
        global_rank=rank, world_size=processes, accumulate_grad_batches=accumulated, current_epoch=1
    )
    loader = module.train_dataloader()
    if done is None:
        loader.sampler.set_epoch(1)
    else:
        loader.sampler.resume(1, done)
    assert len(loader) == len(loader.sampler)
    found = [flat(batch) for batch in loader]
    if done is not None:
        loader.sampler.set_epoch(2)
        assert len(list(loader)) == len(loader), "whatever was left of this epoch, the next one is whole"
    return found


def flat(batch):
    """A batch of several tasks as one with columns of all of them."""
    if not any(isinstance(x, dict) for x in batch.values()):
        return batch
    return {f"{task}/{name}": x for task, columns in batch.items() for name, x in columns.items()}


def joined(batches, axis):
    """Every tensor of batches, one behind the other: those of one shape in all."""
    found = {}
    for batch in batches:
        for name, x in batch.items():
            if x.ndim > axis:
                found.setdefault((name, *(x.shape[1:] if "/" in name else ())), []).append(x)
    return {name: torch.cat(parts, axis) for name, parts in found.items()}


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_times_two_accumulated_batches_see_the_rows_of_one_and_go_on_where_they_were(way, modules):
    make, axis = modules[way], int(way.endswith("copies"))
    whole, ranks = epoch(make()), [epoch(make(), rank, 2, 2) for rank in range(2)]
    assert len(whole) > 1 and [len(rank) for rank in ranks] == [2 * len(whole)] * 2
    together = joined([rank[place] for place in range(2 * len(whole)) for rank in ranks], axis)
    expected = joined(whole, axis)
    assert together.keys() == expected.keys()
    for name, x in expected.items():
        assert torch.equal(together[name], x), name
    shown = ("images", "video", "middle", "token_ids", "audio", "images/images")
    seen = next(x for wanted in shown for (name, *_), x in expected.items() if name == wanted).transpose(0, axis)
    assert len(seen.flatten(1).unique(dim=0)) > len(seen) // 4  # the rows differ, or nothing would have been tested
    for rank, batches in enumerate(ranks):
        for done in (2, len(batches)):
            left = epoch(make(), rank, 2, 2, done=done)
            assert len(left) == len(batches) - done
            for batch, other in zip(left, batches[done:], strict=True):
                assert batch.keys() == other.keys()
                assert all(torch.equal(batch[name], x) for name, x in other.items())


def test_no_data_module_is_left_out(modules):
    found = set()
    for path in sorted((ROOT / "lightning_modules").rglob("[a-z]*.py")):
        if "def train_dataloader" not in path.read_text():
            continue
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        own = inspect.getmembers(module, lambda x: inspect.isclass(x) and issubclass(x, LightningDataModule))
        found |= {x for _, x in own if x.__module__ == module.__name__ and "train_dataloader" in vars(x)}
    assert list(modules) == WAYS
    assert found == {type(make()) for make in modules.values()} and len(found) >= 5
