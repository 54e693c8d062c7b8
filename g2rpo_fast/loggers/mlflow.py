"""MLflow: its tracking server (MLFLOW_TRACKING_URI), else a database in the run directory."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import time
from collections.abc import Mapping

from mlflow.entities import Metric, Param, RunStatus
from mlflow.tracking import MlflowClient, get_tracking_uri, is_tracking_uri_set

from g2rpo_fast.loggers import LoggedRun

ID = "g2rpo_fast.run"
"""Of the tag by which a run that goes on is found again."""
LONGEST = 500
"""Characters of a setting's value that every server takes."""


class Mlflow:
    def __init__(self, run: LoggedRun, client: MlflowClient) -> None:
        self._client = client
        found = client.get_experiment_by_name(run.project)
        experiment = client.create_experiment(run.project) if found is None else found.experiment_id
        known = client.search_runs([experiment], f"tags.`{ID}` = '{run.id}'", max_results=1)
        if known:
            self._id = known[0].info.run_id
            client.update_run(self._id, status=RunStatus.to_string(RunStatus.RUNNING))
        else:
            self._id = client.create_run(experiment, run_name=run.name, tags={ID: run.id}).info.run_id
            params = [Param(name, str(value)[:LONGEST]) for name, value in run.flat.items()]
            client.log_batch(self._id, params=params)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        now_ms = int(time.time() * 1000)
        self._client.log_batch(
            self._id, [Metric(name, value, now_ms, step) for name, value in values.items()]
        )

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


def open_logger(run: LoggedRun) -> Mlflow:
    own = f"sqlite:///{(run.directory / 'mlflow.db').resolve()}"
    uri = get_tracking_uri() if is_tracking_uri_set() else own
    return Mlflow(run, MlflowClient(tracking_uri=uri))
