"""Options of reporting: trackers and webhooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simplewan.options.declare import Group, option
from simplewan.options.values import Words


class ReportingOptions(Group):
    report_to: Words = option(
        (),
        choices=("none", "tensorboard", "wandb"),
        later_choices={"comet_ml": "reports to Comet", "swanlab": "reports to SwanLab"},
        restart_safe=True,
        help="Trackers: tensorboard, wandb, a list of them, or none. events.jsonl is always written.",
    )
    tracker_project_name: str = option("simplewan", restart_safe=True, help="Project name at the trackers.")
    tracker_run_name: str | None = option(
        None, restart_safe=True, help="Run name at the trackers; none takes the name of output_dir."
    )
    logging_dir: Path | None = option(
        None, restart_safe=True, help="Folder of TensorBoard's files; none takes output_dir/logs."
    )
    webhook_config: Path | dict[str, Any] | list[Any] | None = option(
        None,
        restart_safe=True,
        secret=True,
        help="JSON file (or the object itself, or a list of objects) that says where events are posted; its keys are "
        "listed below.",
    )
    webhook_reporting_interval: int = option(
        1,
        minimum=1,
        unit="steps",
        applies="webhook_config",
        restart_safe=True,
        help="Steps between two posts of training figures to a raw webhook.",
    )
