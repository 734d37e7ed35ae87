"""Jobs that do nothing, called by a name of their own, for tests of what hands them out."""

from dataclasses import dataclass
from functools import cached_property

from raybasin.sweep.job_list import Job


@dataclass(frozen=True)
class ToyTask:
    unit: str
    kind: str = "member"


class ToyJob(Job):
    @cached_property
    def job_id(self):
        return self.task.unit


def toy_job(name, kind="member", cost=1.0, needs=()):
    return ToyJob(ToyTask(name, kind), float(cost), tuple(needs))
