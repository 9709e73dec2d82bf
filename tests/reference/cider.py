"""CIDEr-D as the formula reads: everything is counted anew for every pair of sentences."""

import math


def grams(tokens, order):
    return [tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1)]


def tfidf(tokens, order, documents):
    weights = {}
    for gram in grams(tokens, order):
        having = sum(any(gram in grams(other, order) for other in document) for document in documents)
        weights[gram] = grams(tokens, order).count(gram) * (math.log(len(documents)) - math.log(max(1, having)))
    return weights


def cider_d(caption, references, documents):
    """Score of one caption against the references of its image; documents are the reference sets of all images."""
    total = 0.0
    for reference in references:
        apart = max(len(caption) - 1, 0) - max(len(reference) - 1, 0)
        for order in (1, 2, 3, 4):
            ours, theirs = (tfidf(tokens, order, documents) for tokens in (caption, reference))
            length = math.hypot(*ours.values()) * math.hypot(*theirs.values())
            dot = sum(min(ours[gram], theirs[gram]) * theirs[gram] for gram in set(ours) & set(theirs))
            total += dot / length * math.exp(-(apart**2) / (2 * 6**2)) if length else 0.0
    return 10 * total / 4 / len(references)
