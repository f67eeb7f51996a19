"""The site's pages of commands and changes, from the commands and CHANGELOG.md; mkdocs.yml names this file as a hook.

The environment of `make docs` has neither PyTorch nor timm, which reading a command line does not need.
"""

import contextlib
import io
import os
import re
import runpy
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill a page: ``<!-- commands -->`` stands for the help of each command, ``<!-- changes -->`` for CHANGELOG.md."""
    for mark, text in (('<!-- commands -->', commands), ('<!-- changes -->', changes)):
        if mark in markdown:
            markdown = markdown.replace(mark, text())
    return markdown


def on_page_content(html: str, **_: Any) -> str:
    """Name a function as text: the references of docstrings, such as ``:func:`~.data.open_split```, are Sphinx's."""
    return re.sub(r':(?:class|func|meth|mod):<code>(?:~[\w.]*\.)?([^<]+)</code>', r'<code>\1</code>', html)


def changes() -> str:
    """CHANGELOG.md without its title."""
    return (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8').partition('\n')[2]


def commands() -> str:
    """A section for each command with what ``--help`` prints."""
    sys.path.insert(0, str(ROOT))
    os.environ['COLUMNS'] = '110'    # the width of argparse's lines
    launcher = runpy.run_path(str(ROOT / 'timm_se_plugin' / 'commands' / '_launcher.py'))
    sections = []
    with launcher['_without_init']():
        from timm_se_plugin import commands as command_line
        for command in command_line.COMMANDS:
            with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
                command_line.parse(['--help'], command)
            sections.append(f'## timm-se {command}\n\n```text\n{text.getvalue()}```\n')
    return '\n'.join(sections)
