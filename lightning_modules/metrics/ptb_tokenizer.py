"""Words of a caption as the official caption evaluation counts them, without its Java program.

The evaluation of COCO captions sends sentences through Stanford's PTBTokenizer (CoreNLP 3.4.1, lower-cased) and drops
the punctuation that it knows by name. This is the part of its rules that captions use; `tests/metrics/` says how often
the two differ.
"""

import re

DROPPED = frozenset({"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"})
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
QUOTES = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "--", "—": "--", "…": "..."})
# A period belongs to these words even at the end of a sentence.
ABBREVIATIONS = (
    "mr|mrs|ms|dr|st|jr|sr|prof|vs|etc|inc|co|corp|ltd|gen|sen|rep|gov|lt|col|capt|sgt|rev|jan|feb|mar|apr|jun|jul|aug|"
    "sep|sept|oct|nov|dec|ave|blvd|rd|ft|mt"
)
SPLIT_WORDS = {
    "cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na", "gimme": "gim me", "lemme": "lem me",
    "'tis": "'t is", "'twas": "'t was",
}  # fmt: skip
TOKEN = re.compile(
    rf"""
      (?:{ABBREVIATIONS})\.                           # mr.
    | (?:[a-z]\.){{2,}}                               # u.s.a.
    | '(?:tis|twas)\b | '\d\ds?\b | '(?:em|n)\b'?     # 'tis, '90s, 'em, rock 'n' roll
    | \w+(?=n't\b) | n't\b                            # ca n't
    | '(?:s|m|d|re|ve|ll)\b                           # it 's
    | [-+]?\d+(?:[.,:/-]\d+)+ | \d+(?:st|nd|rd|th|s)?\b(?!-)
    | \w+(?:[-/.&_]\w+)*(?:'(?!(?:s|m|d|re|ve|ll|t)\b)\w+)*
    | \.\.\. | -- | [?!]{{2,}} | -[lr][rsc]b- | <\w+> | @\w+
    | \S
    """,
    re.VERBOSE,
)


def tokenize(caption: str) -> list[str]:
    """Lower-case words of a caption without punctuation; "a man's hat." gives a, man, 's, hat.

    Brackets stay, as `-lrb-` and the like: the official list has their upper-case names, which lower-cased text lacks.
    """
    words = TOKEN.findall(caption.lower().translate(QUOTES))
    spelled = " ".join(BRACKETS.get(word) or SPLIT_WORDS.get(word) or word for word in words)
    return [word for word in spelled.split() if word not in DROPPED and word != '"']
