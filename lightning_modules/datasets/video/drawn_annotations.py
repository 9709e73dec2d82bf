"""Small files of annotations in the forms that `annotation_files` reads, for stand-ins: `WRITERS`, `joined`."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from lightning_modules.datasets.video.annotation_files import Corpus


class Drawn(NamedTuple):
    """What a stand-in says of one video: its name, its number, clips of a run, options or classes, and its split."""

    name: str
    number: int
    clips: int
    labels: int
    subset: str

    @property
    def label(self) -> int:
        """One of the options or classes."""
        return self.number % self.labels

    @property
    def options(self) -> list[str]:
        """As many as there are."""
        return [f"thing {option}" for option in range(self.labels)]


Writer = Callable[[Drawn, str], tuple[str, str]]  # an entry of the annotations, and one of the file beside them


def _json(entry: Callable[[Drawn], object], other: Callable[[Drawn], object] = lambda drawn: "") -> Writer:
    return lambda drawn, suffix: (json.dumps(entry(drawn)), json.dumps(other(drawn)))


def _pair(name: str, value: object) -> str:
    return f"{json.dumps(name)}: {json.dumps(value)}"


def _tgif_writer(columns: Callable[[Drawn], Mapping[str, object]]) -> Writer:
    """Lines of a table, or of jsonl."""

    def write(drawn: Drawn, suffix: str) -> tuple[str, str]:
        values = {"gif_name": drawn.name, "question": "what does somebody do ?", **columns(drawn)}
        if suffix not in (".csv", ".tsv"):
            return json.dumps(values), ""
        if "options" in values:
            options = values.pop("options")
            values |= {f"a{number}": option for number, option in enumerate(options, start=1)}
        values = {("type" if key == "answer_type" else key): value for key, value in values.items()}
        values |= {"type": 0} if "type" in values else {}
        return "\t".join(values) + "\n" + "\t".join(map(str, values.values())), ""

    return write


def joined(corpus: Corpus, suffix: str, pieces: Sequence[str]) -> str:
    """A whole file of the entries."""
    if suffix in (".csv", ".tsv"):  # each entry has the header
        return "\n".join([pieces[0].partition("\n")[0], *(piece.partition("\n")[2] for piece in pieces)]) + "\n"
    if corpus == "activitynet":
        return f"{{{', '.join(pieces)}}}"
    if corpus == "coin":
        return f'{{"database": {{{", ".join(pieces)}}}}}'
    if suffix == ".json":
        return f"[{', '.join(pieces)}]"
    return "".join(f"{piece}\n" for piece in pieces)


SAID = [{"text": f"subtitle {number}", "start": number, "end": number + 1} for number in range(8)]
_choice = _tgif_writer(lambda drawn: {"options": drawn.options, "answer": drawn.label})
WRITERS: dict[Corpus, Writer] = {
    "long_videos": lambda drawn, _: (
        json.dumps([f"{drawn.name}.{number}.mp4" for number in range(drawn.clips)]),
        "\n".join(json.dumps({"clip_id": f"{drawn.name}.{number}.mp4", "text": f"transcript {number}"})
                  for number in range(drawn.clips)),
    ),
    "clips": _json(
        lambda drawn: {"clip_id": f"{drawn.name}.0.mp4", "text": "a transcript"},
        lambda drawn: {"clip_id": f"{drawn.name}.0.mp4", "text": "a transcript"},
    ),
    "paragraphs": _json(lambda drawn: {"clip_id": drawn.name, "text": [f"sentence {n}" for n in range(6)]}),
    "activitynet": lambda drawn, _: (
        _pair(drawn.name, {"sentences": ["He sits.", "He stands."], "timestamps": [[0, 5], [4, 10]]}), ""
    ),
    "didemo": _json(lambda drawn: {"video": f"{drawn.name}.mov", "description": f"description {drawn.number}"}),
    "condensed_movies": lambda drawn, _: (
        f"videoid,caption,split\n{drawn.name},description {drawn.number},{drawn.subset}", ""
    ),
    "tgif_action": _choice,
    "tgif_transition": _choice,
    "tgif_frame": _tgif_writer(lambda drawn: {"answer": f"thing {drawn.number % 3}", "answer_type": "object"}),
    "tgif_count": _tgif_writer(lambda drawn: {"answer": drawn.number % 10}),
    "msrvtt_qa": _json(
        lambda drawn: {"video_id": drawn.name, "question": "what is shown?", "answer": f"thing {drawn.number % 3}"}
    ),
    "msrvtt_mc": lambda drawn, _: (
        json.dumps({"qid": drawn.number, "clip_name": drawn.name, "options": drawn.options, "answer": drawn.label}), ""
    ),
    "activitynet_qa": _json(
        lambda drawn: {"video_name": drawn.name, "question": "what is shown", "question_id": drawn.name},
        lambda drawn: {"answer": f"thing {drawn.number % 3}", "type": 5, "question_id": drawn.name},
    ),
    "how2qa": _json(lambda drawn: {
        "clip_id": drawn.name, "text_q": "what is shown?", "text_a": drawn.options, "answer_idx": drawn.label,
        "text_s": SAID, "span": [1.0, 3.5],
    }),
    "violin": _json(
        lambda drawn: {"clip_id": drawn.name, "text_q": "it is shown", "text_s": SAID[:5], "answer": drawn.label}
    ),
    "coin": lambda drawn, _: (_pair(drawn.name, {"subset": drawn.subset, "recipe_type": drawn.label}), ""),
    "classes": _json(lambda drawn: {"video_id": drawn.name, "recipe_type": drawn.label}),
}  # fmt: skip
