"""What a value model is worth: AUC within a prompt, the best of k, calibration."""

import random

import numpy

BINS = 10
RESAMPLES = 2000


def within_prompt_auc(groups):
    """Mean over prompts of the probability that a right answer scores above a wrong one. Ties count half.

    groups: lists of (score, is right).
    """
    aucs = []
    for group in groups:
        right = numpy.array([score for score, is_right in group if is_right])
        wrong = numpy.array([score for score, is_right in group if not is_right])
        if len(right) and len(wrong):
            gaps = right[:, None] - wrong[None, :]
            aucs.append(((gaps > 0).mean() + (gaps == 0).mean() / 2))
    return (float(numpy.mean(aucs)), len(aucs)) if aucs else (float("nan"), 0)


def chosen_right(groups):
    """Share of prompts whose highest-scored answer is right; ties share."""
    shares = []
    for group in groups:
        best = max(score for score, _ in group)
        shares.append(numpy.mean([is_right for score, is_right in group if score == best]))
    return shares


def interval(shares, seed=0):
    """95 % percentile interval of a mean, by resampling prompts."""
    rng = random.Random(seed)
    means = sorted(numpy.mean(rng.choices(shares, k=len(shares))) for _ in range(RESAMPLES))
    return means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES) - 1]


def reliability(scored):
    """Rows of (mean value, share of right, number) a bin of equal width, and the expected calibration error.

    scored: (value, is right) of each answer.
    """
    values = numpy.array([value for value, _ in scored])
    right = numpy.array([float(is_right) for _, is_right in scored])
    bins = numpy.minimum((values * BINS).astype(int), BINS - 1)
    rows, error = [], 0.0
    for index in range(BINS):
        here = bins == index
        if here.any():
            rows.append((float(values[here].mean()), float(right[here].mean()), int(here.sum())))
            error += here.mean() * abs(values[here].mean() - right[here].mean())
    return rows, float(error)


def platt(logits, targets):
    """Scale and shift of logits by logistic regression (Platt 1999); Newton's method on two numbers."""
    x, y = numpy.asarray(logits, dtype=float), numpy.asarray(targets, dtype=float)
    scale, shift = 1.0, 0.0
    for _ in range(50):
        p = 1 / (1 + numpy.exp(-numpy.clip(scale * x + shift, -30, 30)))
        w = numpy.maximum(p * (1 - p), 1e-6)
        gradient = numpy.array([((p - y) * x).sum() + 1e-3 * (scale - 1), (p - y).sum()])
        hessian = numpy.array([[(w * x * x).sum() + 1e-3, (w * x).sum()], [(w * x).sum(), w.sum() + 1e-6]])
        step = numpy.linalg.solve(hessian, gradient)
        scale, shift = scale - step[0], shift - step[1]
        if abs(step).max() < 1e-8:
            break
    # A scale that is not positive would turn the order around.
    return (float(scale), float(shift)) if scale > 0.05 else (1.0, 0.0)


def picture(path, rows, error, title):
    """The reliability diagram as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (top, below) = plt.subplots(2, 1, figsize=(5, 6), height_ratios=[3, 1], sharex=True)
    top.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
    top.plot([row[0] for row in rows], [row[1] for row in rows], marker="o")
    top.set(ylabel="share of right answers", title=f"{title} (ECE {error:.3f})", xlim=(0, 1), ylim=(0, 1))
    below.bar([row[0] for row in rows], [row[2] for row in rows], width=0.06)
    below.set(xlabel="value", ylabel="answers")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
