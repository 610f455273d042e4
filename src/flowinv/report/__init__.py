"""The posterior as one self-contained web page."""

from .page import write_report

__all__ = ["write_report"]
