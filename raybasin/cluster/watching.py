"""What Ray's metrics say of a sweep: each machine of a cluster exports those of its processes, for Prometheus to read.

They are the driver's, which looks at the queue about once a second, knows what was done before it, and outlives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ray.util.metrics import Gauge

from raybasin.cluster.queue import Stats
from raybasin.sweep.settings import Settings

TAGS = ("sweep", "settings")
GAUGES = {
    "cells": "Cells that the sweep asks for; of a search, those that are chosen by now.",
    "cells_done": "Cells that are done, those of earlier runs too.",
    "cells_failed": "Cells that this run has given up.",
    "networks": "Networks and checkpoints to be trained for the cells.",
    "networks_done": "Networks and checkpoints that are trained, those of earlier runs too.",
    "workers": "Workers that get jobs.",
    "workers_busy": "Workers that have a job in hand.",
    "workers_given_up": "Workers that get no more jobs, since they are broken.",
    "images": "Images that have gone through networks in this run, each as often as it has, in training or not.",
    "images_per_second": "Images that go through networks, in training or not, over the last minute.",
}


@dataclass(frozen=True)
class Before:
    """How many of a sweep were done before its queue was made."""

    cells: int = 0
    networks: int = 0


class Metrics:
    """Of one sweep, by the names of `GAUGES` after `raybasin_`. Where Ray has no agent, nobody hears of them.

    What grows is a gauge too: in a process that has joined clusters n times, Ray 2.60 exports a Counter n-fold.
    """

    def __init__(self, settings: Settings) -> None:
        tags = {"sweep": settings.spec.name, "settings": settings.settings_id}
        self.gauges = {name: Gauge(f"raybasin_{name}", meaning, TAGS) for name, meaning in GAUGES.items()}
        for metric in self.gauges.values():
            metric.set_default_tags(tags)

    def show(self, stats: Stats, before: Before) -> None:
        for name, value in values(stats, before).items():
            self.gauges[name].set(value)


def values(stats: Stats, before: Before) -> Mapping[str, float]:
    return {
        "cells": before.cells + stats.cells[1],
        "cells_done": before.cells + stats.cells[0],
        "cells_failed": stats.failed_cells,
        "networks": before.networks + stats.networks[1],
        "networks_done": before.networks + stats.networks[0],
        "workers": len(stats.pids),
        "workers_busy": len(stats.running),
        "workers_given_up": len(stats.given_up),
        "images": stats.images,
        "images_per_second": stats.images_per_second,
    }
