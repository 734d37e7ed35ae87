"""The only room that imports ray: the same jobs as in one process, on many workers."""

import os

# Ray reads these when it is imported, in whatever process of the cluster runs code of this room.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one cannot be silenced
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # its handler ends a sweep as if all were done
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # three files for each trial, in a folder that goes
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1e9")  # of all trials: a sweep goes on from its tables
