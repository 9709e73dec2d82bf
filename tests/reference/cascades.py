"""One sample at a time, one threshold vector at a time: what the fast search must equal."""

import itertools
import math


def run(confident, correct, macs, thresholds):
    """Whether each sample is right, and what it costs. confident: (stages - 1) rows, correct: `stages` rows."""
    right, spent = [], []
    for i in range(len(correct[0])):
        cost = 0
        for stage in range(len(correct)):
            cost += macs[stage]
            if stage == len(correct) - 1 or confident[stage][i] >= thresholds[stage]:
                right.append(bool(correct[stage][i]))
                spent.append(cost)
                break
    return right, spent


def summary(confident, correct, macs, thresholds):
    """Accuracy, average MACs and their standard error."""
    right, spent = run(confident, correct, macs, thresholds)
    mean = sum(spent) / len(spent)
    variance = sum((cost - mean) ** 2 for cost in spent) / len(spent)
    return sum(right) / len(right), mean, math.sqrt(variance / len(spent))


def search(confident, correct, macs, edges):
    """`summary` of every threshold vector, in the order of `itertools.product(*edges)`."""
    return [summary(confident, correct, macs, thresholds) for thresholds in itertools.product(*edges)]
