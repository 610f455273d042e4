"""The command line: `flowinv demo | train | evaluate | solve | report | priors`."""

from .app import app, main

__all__ = ["app", "main"]
