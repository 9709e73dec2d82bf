"""Retrieval as one would do it by hand: a loop over queries, and in it one over items."""


def ranks(similarity, query_ids, item_ids):
    found = []
    for query, query_id in enumerate(query_ids):
        candidates = []
        for item, item_id in enumerate(item_ids):
            if item_id != query_id:
                continue
            rank = 1
            for other, other_id in enumerate(item_ids):
                if other_id != query_id and similarity[query][other] >= similarity[query][item]:
                    rank += 1
            candidates.append(rank)
        found.append(min(candidates))
    return found


def dual_softmax(similarity, exp):
    """Text to video: each similarity times its share in the column of its video."""
    texts, videos = len(similarity), len(similarity[0])
    result = [[0.0] * videos for _ in range(texts)]
    for video in range(videos):
        total = sum(exp(100 * float(similarity[text][video])) for text in range(texts))
        for text in range(texts):
            value = float(similarity[text][video])
            result[text][video] = value * exp(100 * value) / total
    return result
