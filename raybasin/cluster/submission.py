"""A command as a job of a running Ray cluster: submitted, followed, and its exit status known.

`ray job submit` ends with 0 where a job was stopped and with 1 whatever else its status was, and gives up while the
agent that starts jobs, the last part of a cluster to come, is not there yet.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import exceptions
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from raybasin.errors import UserError, one_line

AGENT_SECONDS = 120.0
"""So long after the start of a cluster its agent may take, on a busy machine."""
SILENT_SECONDS = 30.0
POLL_SECONDS = 1.0
NOT_LET_IN: Any = getattr(exceptions, "AuthenticationError", ())
"""Ray 2.51 has no tokens, and no such error."""
FAILED, STOPPED = 1, 130
"""Exit statuses, where there is none of a driver."""


def connect(address: str) -> JobSubmissionClient:
    """A client of the cluster whose dashboard is at `address`. Raises UserError where it does not let one in."""
    if not address.startswith(("http://", "https://")):
        raise UserError(
            f"--address {address}: must be that of the cluster's dashboard, for instance http://127.0.0.1:8265"
        )
    logging.disable(logging.INFO)  # Ray tells of each file that it does not upload
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # else, where it is set, Ray takes it instead
    try:
        return JobSubmissionClient(address)
    except NOT_LET_IN as error:
        raise UserError(
            f"--address {address}: the cluster does not let you in ({one_line(error, 200)})\n"
            "One with a token needs it here, too: export RAY_AUTH_MODE=token, and the token itself in "
            "RAY_AUTH_TOKEN or ~/.ray/auth_token."
        ) from error
    except Exception as error:  # of any class: the answer may come from whatever else listens there
        raise UserError(
            f"--address {address}: no dashboard of a Ray cluster answers ({one_line(error, 200)})\n"
            "Start one with `make cluster`, or with `ray start --head`, which prints the address."
        ) from error


def submit(
    client: JobSubmissionClient,
    arguments: Sequence[str],
    python: str,
    say: Callable[[str], None],
    environment: Mapping[str, str],
) -> str:
    """Has a copy of the current folder and `python -m raybasin arguments` run on the cluster, with further variables in
    its environment; the id of the job.

    Raises UserError where the cluster takes no jobs, or none so large.
    """
    command = shlex.join([python, "-m", "raybasin", *arguments])
    runtime = {"working_dir": ".", "env_vars": dict(environment)}
    until, said = time.monotonic() + AGENT_SECONDS, False
    while True:
        try:
            return client.submit_job(entrypoint=command, runtime_env=runtime)
        except (RuntimeError, OSError) as error:  # requests' errors are of the latter kind
            if "No available agent" not in str(error):
                raise UserError(f"the cluster does not take the job: {one_line(error, 300)}") from error
            if time.monotonic() > until:
                raise UserError(
                    f"the cluster has taken no job for {AGENT_SECONDS:g} s: {one_line(error, 200)}\n"
                    "The agent on its head may not have been able to listen (dashboard_agent.log in Ray's logs): start "
                    "the head with --dashboard-agent-listen-port=0."
                ) from error
        if not said:
            say("waiting for the cluster's agent, which starts jobs")
            said = True
        time.sleep(POLL_SECONDS)


def follow(client: JobSubmissionClient, job: str, show: Callable[[str], None], say: Callable[[str], None]) -> int:
    """Shows the job's log until the job ends; its exit status: that of its driver, 130 where the job was stopped, 1
    where the cluster has gone."""
    shown, heard, said = 0, time.monotonic(), ""

    async def tail() -> None:
        nonlocal shown
        seen = 0  # a log is told from its beginning
        async for text in client.tail_job_logs(job):
            show(text[max(0, shown - seen) :])
            seen += len(text)
            shown = max(shown, seen)

    while True:
        try:
            asyncio.run(tail())
        except Exception as error:  # of any class: the line was cut, or the cluster has gone, as is seen now
            if said != (said := one_line(error, 200)):
                say(f"the log of job {job} breaks off: {said}")
        try:
            found = client.get_job_info(job)
        except (RuntimeError, OSError) as error:
            if time.monotonic() - heard > SILENT_SECONDS:
                say(f"the cluster does not answer any more: {one_line(error, 200)}; the same command continues")
                return FAILED
        else:
            heard = time.monotonic()
            if found.status.is_terminal():
                return _exit_status(found, say)
        time.sleep(POLL_SECONDS)


def _exit_status(job: JobDetails, say: Callable[[str], None]) -> int:
    if job.status == JobStatus.STOPPED:
        return STOPPED
    if job.driver_exit_code is None:  # there was no driver, or it died with its node
        say(f"the job {job.status.lower()}: {one_line(job.message)}")
        return 0 if job.status == JobStatus.SUCCEEDED else FAILED
    return job.driver_exit_code if job.driver_exit_code >= 0 else 128 - job.driver_exit_code  # as a shell has it


def how_to_stop(address: str, job: str) -> str:
    """The command that stops a job, as it can be typed."""
    mode = os.environ.get("RAY_AUTH_MODE")
    ray = str(Path(sys.executable).with_name("ray"))
    return (f"RAY_AUTH_MODE={mode} " if mode else "") + shlex.join([ray, "job", "stop", "--address", address, job])
