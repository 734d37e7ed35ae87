"""Whether 95 % intervals hold the truth in 95 % of cases, over truths that are known.

    python benchmarks/intervals.py [--times N]

Predictors on made-up images: a network is right where the sum of an image's difficulty, of what the image is to this
predictor, of its replicate and of chance is above 0, all of them normal, so that true accuracies are known in closed
form and true NLLs by quadrature. Differences are those of two predictors in correctness and in nats, and of a path's
middle from the line between its ends. `hard` images are right in about 64 % of cases, `easy` ones in 96 %, and of
`rare` ones, as easy, few change their answer. What a replicate adds has a standard deviation of 0, 0.03 or 0.15 (0, 1
and 6 points of accuracy on hard images).

First, where the variance of the images is known exactly: the least and the most of the coverage over all ratios of the
two variances, by numerical integration. Then the share of `--times` simulated data sets whose interval holds the truth,
of raybasin's interval, of Satterthwaite's and of the sum of squared half widths, least and most over the replicates'
deviations; and the mean half width in points or hundredths of a nat; and raybasin's where few images change, without
and with the images that are not seen. Last, several checkpoints.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2, norm
from scipy.stats import t as student

from raybasin.metrics import intervals
from raybasin.metrics.intervals import Variance

Array = npt.NDArray[np.float64]
KINDS = ("accuracy", "nats", "barrier")
STEP = {"accuracy": 1.0, "nats": 0.0, "barrier": 1.0}
DEVIATIONS = (0.0, 0.03, 0.15)


@dataclass(frozen=True)
class Task:
    """Latent means of the networks that are compared, and the deviations of what is added to them: what an image is to
    one predictor (`image`), its networks in one replicate (`rest`), and the `replicate` and `checkpoint` themselves."""

    kind: str
    means: tuple[float, ...]
    image: float
    rest: float
    replicate: float
    checkpoint: float = 0.0

    def draw(self, rng: np.random.Generator, checkpoints: int, replicates: int, images: int) -> Array:
        """d_CRN."""
        difficulty_N = rng.standard_normal(images)
        latent = [
            mean
            + difficulty_N
            + self.image * rng.standard_normal(images)
            + self.checkpoint * rng.standard_normal((checkpoints, 1, 1))
            + self.replicate * rng.standard_normal((checkpoints, replicates, 1))
            + self.rest * rng.standard_normal((checkpoints, replicates, images))
            for mean in self.means
        ]
        if self.kind == "nats":
            return self._difference([np.logaddexp(0, -2 * s_CRN) for s_CRN in latent])
        return self._difference([(s_CRN > 0).astype(float) for s_CRN in latent])

    def truth(self) -> float:
        deviation = np.sqrt(1 + self.image**2 + self.rest**2 + self.replicate**2 + self.checkpoint**2)
        means = np.array(self.means)
        if self.kind != "nats":
            return float(self._difference(list(norm.cdf(means / deviation))))
        nodes_Q, weights_Q = np.polynomial.hermite_e.hermegauss(200)
        nll = [weights_Q @ np.logaddexp(0, -2 * (mean + deviation * nodes_Q)) / weights_Q.sum() for mean in means]
        return float(self._difference(nll))

    def _difference(self, values: Sequence[Array]) -> Array:
        if self.kind == "barrier":  # of errors, from those of correctness
            start, middle, end = values
            return (start + end) / 2 - middle
        return values[0] - values[1]


def task(kind: str, level: str, replicate: float, checkpoint: float = 0.0) -> Task:
    mean, image, rest = {"hard": (0.4, 0.2, 0.35), "easy": (1.75, 0.15, 0.25), "rare": (1.9, 0.1, 0.05)}[level]
    means = (mean, mean - 0.15, mean) if kind == "barrier" else (mean + 0.08, mean)
    return Task(kind, means, image, rest, replicate, checkpoint)


# What was tried


def satterthwaite(v: Variance) -> float:
    """Student's t with Satterthwaite's degrees of freedom."""
    total = v.images + v.rows
    if total == 0:
        return 0.0
    df = total**2 / (v.images**2 / (v.n_images - 1) + v.rows**2 / (v.n_rows - 1))
    return float(student.ppf(0.975, df) * np.sqrt(total))


def squares(v: Variance) -> float:
    """The root of the sum of the squared half widths of images and of rows alone."""
    return float(np.hypot(student.ppf(0.975, v.n_images - 1) * np.sqrt(v.images),
                          student.ppf(0.975, v.n_rows - 1) * np.sqrt(v.rows)))  # fmt: skip


def cochran(v: Variance) -> float:
    """Cochran's (1964) quantile: the mean of the two, weighted by the variances."""
    t_images, t_rows = student.ppf(0.975, v.n_images - 1), student.ppf(0.975, v.n_rows - 1)
    total = v.images + v.rows
    return float((t_images * v.images + t_rows * v.rows) / np.sqrt(total)) if total else 0.0


METHODS = {"raybasin": Variance.half_width, "Satterthwaite": satterthwaite, "Cochran": cochran, "squares": squares}


def known_images(degrees: int) -> dict[str, tuple[float, float]]:
    """The least and the most of the coverage over ratios of the rows' variance to that of the images, which is 1 and
    known; the rows' variance is estimated with `degrees` of freedom."""
    quantiles_Q = chi2.ppf((np.arange(1000) + 0.5) / 1000, degrees) / degrees
    found: dict[str, list[float]] = {name: [] for name in METHODS}
    for ratio in np.geomspace(0.01, 300, 24):
        for name, half_width in METHODS.items():
            half_Q = np.array([half_width(Variance(1.0, ratio * q, 1_000_000, degrees + 1)) for q in quantiles_Q])
            found[name].append(float(np.mean(2 * norm.cdf(half_Q / np.sqrt(1 + ratio)) - 1)))
    return {name: (min(covered), max(covered)) for name, covered in found.items()}


def simulated(of: Task, replicates: int, images: int, times: int) -> tuple[dict[str, float], float]:
    """The share of intervals that hold the truth, by method, and the mean half width of raybasin's."""
    rng, truth = np.random.default_rng([replicates, images, round(100 * of.replicate)]), of.truth()
    hits, width = dict.fromkeys(METHODS, 0), 0.0
    for _ in range(times):
        d_RN = of.draw(rng, 1, replicates, images)[0]
        v, distance = intervals.variance(d_RN, STEP[of.kind]), abs(d_RN.mean() - truth)
        for name, half_width in METHODS.items():
            hits[name] += distance <= half_width(v)
        width += v.half_width()
    return {name: count / times for name, count in hits.items()}, width / times


def rare(of: Task, replicates: int, images: int, times: int) -> tuple[float, float, float]:
    """The share of intervals that hold the truth, without and with images that are not seen, and the mean half width
    with them."""
    rng, truth = np.random.default_rng([replicates, images, round(100 * of.replicate)]), of.truth()
    found = np.zeros(3)
    for _ in range(times):
        d_RN = of.draw(rng, 1, replicates, images)[0]
        without, half = (intervals.variance(d_RN, step).half_width() for step in (0.0, STEP[of.kind]))
        distance = abs(d_RN.mean() - truth)
        found += distance <= without, distance <= half, half
    return tuple(found / times)


def with_checkpoints(of: Task, checkpoints: int, replicates: int, images: int, times: int) -> float:
    """The share of intervals over several checkpoints that hold the truth."""
    rng, truth = np.random.default_rng([checkpoints, replicates, images]), of.truth()
    hits = 0
    for _ in range(times):
        means_CN = of.draw(rng, checkpoints, replicates, images).mean(axis=1)  # as `intervals.interval` takes them
        hits += abs(means_CN.mean() - truth) <= intervals.variance(means_CN, STEP[of.kind]).half_width()
    return hits / times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=2000, help="simulated data sets for each line")
    times = parser.parse_args().times

    print("coverage in %, least and most; variance of the images known\n\ndegrees of freedom  " + "  ".join(METHODS))
    for degrees in (1, 2, 3, 4, 9):
        print(degrees, *(f"{100 * low:.1f}-{100 * high:.1f}" for low, high in known_images(degrees).values()), sep="  ")
    print(f"\ncoverage in %, least and most over replicates' deviations {DEVIATIONS}; {times} data sets each\n")
    print("kind      images  R  N     " + "  ".join(METHODS) + "  mean half widths, points")
    least, most = 1.0, 0.0
    for kind, level, replicates, images in product(KINDS, ("hard", "easy"), (2, 3, 5), (100, 300, 2000)):
        found = [simulated(task(kind, level, deviation), replicates, images, times) for deviation in DEVIATIONS]
        ranges = [(min(hit[name] for hit, _ in found), max(hit[name] for hit, _ in found)) for name in METHODS]
        least, most = min(least, ranges[0][0]), max(most, ranges[0][1])
        widths = ", ".join(f"{100 * width:.1f}" for _, width in found)
        covered = "  ".join(f"{100 * low:.1f}-{100 * high:.1f}" for low, high in ranges)
        print(f"{kind:9} {level:6} {replicates}  {images:<5} {covered}  {widths}", flush=True)
    print(f"raybasin's, over all: {100 * least:.1f} to {100 * most:.1f}\n")
    print("few images that change: coverage in %, least and most, without and with those that are not seen\n")
    print("kind      R  N     without  raybasin  mean half widths, points")
    for kind, replicates, images in product(("accuracy", "barrier"), (1, 2, 3, 5), (60, 100, 300, 2000)):
        deviations = DEVIATIONS if replicates > 1 else DEVIATIONS[:1]  # of one replicate its networks are the truth
        found = [rare(task(kind, "rare", deviation), replicates, images, times) for deviation in deviations]
        without, held, half = zip(*found, strict=True)
        covered = f"{100 * min(without):.1f}-{100 * max(without):.1f}  {100 * min(held):.1f}-{100 * max(held):.1f}"
        widths = ", ".join(f"{100 * width:.1f}" for width in half)
        print(f"{kind:9} {replicates}  {images:<5} {covered}  {widths}", flush=True)
    print("\ncheckpoints  R  N     coverage in %, deviations of checkpoints 0, 0.03 and 0.15, of replicates 0.03")
    for checkpoints, replicates, images in product((2, 3, 5), (1, 2), (300, 2000)):
        tasks = [task("accuracy", "hard", 0.03, deviation) for deviation in DEVIATIONS]
        covered = [f"{100 * with_checkpoints(t, checkpoints, replicates, images, times):.1f}" for t in tasks]
        print(f"{checkpoints:<12} {replicates}  {images:<5} {', '.join(covered)}", flush=True)


if __name__ == "__main__":
    main()
