"""The version that the installed distribution states."""

from importlib.metadata import version

__version__ = version("cellstate")
