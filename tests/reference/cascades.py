"""One sample at a time, one threshold vector at a time: what the fast search must equal."""

import itertools


def run(confident, correct, macs, thresholds):
    """Accuracy and average MACs of one cascade. confident: (stages - 1) rows, correct: `stages` rows of samples."""
    samples, right, spent = len(correct[0]), 0, 0
    for i in range(samples):
        for stage in range(len(correct)):
            spent += macs[stage]
            if stage == len(correct) - 1 or confident[stage][i] >= thresholds[stage]:
                right += bool(correct[stage][i])
                break
    return right / samples, spent / samples


def search(confident, correct, macs, edges):
    """(accuracy, MACs) of every threshold vector, in the order of `itertools.product(*edges)`."""
    return [run(confident, correct, macs, thresholds) for thresholds in itertools.product(*edges)]
