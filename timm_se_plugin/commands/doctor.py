"""Say what is installed, what each extra would add, and which computations are fused on this machine.

timm-se doctor            also checks that the Hugging Face Hub answers
timm-se doctor --offline  does not use the network
"""

import argparse

__all__ = ['add_arguments', 'run']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument('--offline', action='store_true', help='do not check whether the Hub answers')


def run(args: argparse.Namespace) -> dict[str, dict[str, str]]:
    """Print and return what was found."""
    from ..measuring.environment import environment
    found = environment(ask_hub=not args.offline)
    width = max(len(name) for section in found.values() for name in section)
    for title, section in found.items():
        print(title)
        for name, text in section.items():
            print(f'  {name:<{width}}  {text}')
    return found
