"""Stand-ins for wandb, trackio and mlflow: they record calls, and take the arguments that the real ones take."""

import types


def stand_in(name, calls):
    """A module that records what is called, as `(function, what it was given)`."""
    module = types.ModuleType(name)
    vars(module).update({"wandb": _wandb, "trackio": _trackio, "mlflow": _mlflow}[name](calls))
    return module


def _given(values):
    return {
        name: value
        for name, value in values.items()
        if value is not None and name not in ("calls", "active", "known", "Run")
    }


def _wandb(calls):
    class Summary:
        def update(self, d):
            calls.append(("summary", d))

    class Run:
        summary = Summary()

        def log(self, data, step=None, commit=None):
            calls.append(("log", step, data))

        def finish(self, exit_code=None):
            calls.append(("finish", exit_code))

    def init(entity=None, project=None, dir=None, id=None, name=None, notes=None, tags=None, config=None,
             config_exclude_keys=None, config_include_keys=None, allow_val_change=None, group=None, job_type=None,
             mode=None, force=None, reinit=None, resume=None, resume_from=None, fork_from=None, save_code=None,
             tensorboard=None, sync_tensorboard=None, monitor_gym=None, settings=None):  # fmt: skip
        calls.append(("init", _given(locals())))
        return Run()

    return {"init": init}


def _trackio(calls):
    class Run:
        def log(self, metrics, step=None):
            calls.append(("log", step, metrics))

        def finish(self):
            calls.append(("finish", None))

    def init(project, name=None, group=None, space_id=None, server_url=None, dataset_id=None, bucket_id=None,
             config=None, resume="never", settings=None, private=None, embed=True, auto_log_gpu=None,
             gpu_log_interval=10.0, auto_log_cpu=None, cpu_log_interval=10.0, webhook_url=None,
             webhook_min_level=None):  # fmt: skip
        calls.append(("init", _given(locals())))
        return Run()

    return {"init": init}


def _mlflow(calls):
    active, known = [], []

    def start_run(run_id=None, experiment_id=None, run_name=None, nested=False, parent_run_id=None, tags=None,
                  description=None, log_system_metrics=None):  # fmt: skip
        if active:
            raise Exception(f"Run with UUID {active[0]} is already active")
        calls.append(("init", _given(locals())))
        known.append(run_id or f"run-{len(known)}")
        active.append(known[-1])
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=known[-1]))

    def log_params(params, synchronous=None, run_id=None):
        assert len(params) <= 100 and all(len(value) <= 6000 for value in params.values())
        calls.append(("params", params))

    def log_metrics(metrics, step=None, synchronous=None, run_id=None, timestamp=None, model_id=None, dataset=None):
        assert active
        calls.append(("log", step, metrics))

    def end_run(status="FINISHED"):
        assert status in ("FINISHED", "FAILED", "KILLED", "RUNNING", "SCHEDULED")
        active.clear()
        calls.append(("finish", status))

    return {"start_run": start_run, "log_params": log_params, "log_metrics": log_metrics, "end_run": end_run}
