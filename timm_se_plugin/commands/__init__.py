"""The command ``timm-se``: for each of its commands a module with the options and one call into the package."""

from .command_line import COMMANDS, command_parser, main, parse, run

__all__ = ['COMMANDS', 'command_parser', 'main', 'parse', 'run']
