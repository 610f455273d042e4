"""Inverse problems by name."""

from .degradations import motion_kernel
from .mask_file import read_mask
from .options import parse_options
from .task import TASKS, Task, TaskInfo, operator_from_spec, task, task_from_spec

__all__ = [
    "TASKS",
    "Task",
    "TaskInfo",
    "motion_kernel",
    "operator_from_spec",
    "parse_options",
    "read_mask",
    "task",
    "task_from_spec",
]
