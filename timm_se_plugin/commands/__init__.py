"""The command ``timm-se``: a module for each of its words, with the options of a job and one call into the package."""

from .command_line import COMMANDS, command_parser, main, parse, run

__all__ = ['COMMANDS', 'command_parser', 'main', 'parse', 'run']
