"""A scheduler of Ray Tune that ends points of high rates once a replicate is there: what it decides is known."""

from ray.tune.schedulers import FIFOScheduler, TrialScheduler


class EndsHighRates(FIFOScheduler):
    def on_trial_result(self, tune_controller, trial, result):
        is_over = trial.config["lr_ratio"] > 1 and result["replicates"] >= 1
        return TrialScheduler.STOP if is_over else TrialScheduler.CONTINUE
