"""Intervals over problems and seeds (needs numpy)."""

import numpy

RESAMPLES = 10_000
# Resampled means of a problem's seeds that resampled problems draw from.
SEED_RESAMPLES = 256
CHUNK_VALUES = 4_000_000
LOW, HIGH = 2.5, 97.5
Z95 = 1.959964


def wilson(num_right, num):
    """The 95 % Wilson interval of a share."""
    share, square = num_right / num, Z95 * Z95
    centre = (share + square / (2 * num)) / (1 + square / num)
    half = Z95 / (1 + square / num) * (share * (1 - share) / num + square / (4 * num * num)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def resampled_seeds(values, rng):
    """For each problem SEED_RESAMPLES means of its seeds, drawn with replacement."""
    pool = numpy.empty((len(values), SEED_RESAMPLES))
    for index, of_seeds in enumerate(values):
        of_seeds = numpy.asarray(of_seeds, dtype=float)
        draws = rng.integers(len(of_seeds), size=(SEED_RESAMPLES, len(of_seeds)))
        pool[index] = of_seeds[draws].mean(axis=1)
    return pool


def resampled_means(columns, seed):
    """RESAMPLES means of each column: problems are drawn with replacement, and for each its seeds.

    A column is a list over problems of lists over seeds. All columns draw the same problems, and
    the same seeds where they have as many, so that functions of several columns can be resampled.
    """
    pools = [resampled_seeds(values, numpy.random.default_rng(seed)) for values in columns]
    rng, num = numpy.random.default_rng(seed + 1), len(columns[0])
    means = [[] for _ in columns]
    chunk = max(1, CHUNK_VALUES // num)
    for start in range(0, RESAMPLES, chunk):
        size = (min(chunk, RESAMPLES - start), num)
        problems, seeds = rng.integers(num, size=size), rng.integers(SEED_RESAMPLES, size=size)
        for of_column, pool in zip(means, pools):
            of_column.append(pool[problems, seeds].mean(axis=1))
    return [numpy.concatenate(of_column) for of_column in means]


def percentile_interval(means):
    """The 95 % interval of resampled means."""
    low, high = numpy.nanpercentile(means, [LOW, HIGH])
    return float(low), float(high)


def mean(values):
    """The mean over problems of the means over their seeds."""
    return float(numpy.mean([numpy.mean(of_seeds) for of_seeds in values]))


def interval(values, seed):
    """The 95 % hierarchical bootstrap interval of the mean."""
    return percentile_interval(resampled_means([values], seed)[0])


def share_interval(values, seed):
    """`interval` of a share. Where all are right or none is, resampling shows no spread: then it is
    Wilson's over the problems."""
    share = mean(values)
    return wilson(share * len(values), len(values)) if share in (0, 1) else interval(values, seed)
