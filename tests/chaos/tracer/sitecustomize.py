"""Python imports this at its start, in every process whose PYTHONPATH names this folder: the workers of a chaos run.

It does nothing unless RAYBASIN_CHAOS names the folder of the run. Then `raybasin.jobs.execution`, once a process has
imported it, is traced (see `tracer`).
"""

import os
import sys

if os.environ.get("RAYBASIN_CHAOS"):
    import importlib.abc
    import importlib.util

    class AfterJobs(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name != "raybasin.jobs.execution":
                return None
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(name)
            execute = spec.loader.exec_module

            def execute_and_trace(module):
                execute(module)
                import tracer

                tracer.install(module)

            spec.loader.exec_module = execute_and_trace
            return spec

    sys.meta_path.insert(0, AfterJobs())
