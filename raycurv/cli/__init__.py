"""The command ``raycurv``, and the same commands as scripts for ``ray job submit``.

A command is a frozen dataclass: its fields are the options, ``run`` does the work. Importing one imports neither torch
nor Ray; ``run`` does.
"""
