"""What `recipe.compile` brings on a processor: images a second of training with and without it, in turns.

    python benchmarks/compiled.py [--rounds N]

Two workers of one thread train noise at the same time, as `workers.cpus: auto` measures; torch keeps on disk what it
has compiled, so all but the first of a network find it there. Steps that compile are not counted. Printed are medians
with their range, and the median of the pairs' ratios with theirs. On a GPU `make gpu-check` asks the same.
"""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial

from threads import begin, in_turns, settings

from raybasin.jobs.threads import train_at_once
from raybasin.sweep.settings import Settings

TRAINED = (("test_resnet", 64, 50), ("resnet18", 64, 32), ("resnet50", 224, 16))
"""Network, pixels of a side, batch."""


def with_compile(asked: Settings) -> Settings:
    recipe = asked.spec.recipe.model_copy(update={"compile": True})
    return dataclasses.replace(asked, spec=asked.spec.model_copy(update={"recipe": recipe}))


def rate(asked: Settings) -> float:
    return train_at_once(asked, 1, 2).images_per_second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    options = begin(parser, "| network, image, batch | as it is | compiled | ratio |")
    for network, size, batch in TRAINED:
        asked = settings(network, batch, size)
        row = in_turns(partial(rate, asked), partial(rate, with_compile(asked)), options.rounds)
        print(f"| {network}, {size} px, {batch} | {row} |", flush=True)


if __name__ == "__main__":
    main()
