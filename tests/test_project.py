"""The files around the package agree with one another: workflows, hooks, versions and papers."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import yaml

from timm_se_plugin import __version__
from timm_se_plugin.commands import COMMANDS
from timm_se_plugin.placement import ATTENTIONS

ROOT = Path(__file__).parents[1]


def text(name):
    return (ROOT / name).read_text(encoding='utf-8')


def recipe(target):
    """The commands of a target of the Makefile."""
    commands = re.search(rf'^{target}:.*\n((?:\t.*\n)+)', text('Makefile'), re.M)[1]
    return [line.strip().replace('$(BIN)', '.venv/bin') for line in commands.splitlines()]


def test_hooks_of_pre_commit_run_what_make_lint_runs():
    repository, = yaml.safe_load(text('.pre-commit-config.yaml'))['repos']
    assert [hook['entry'] for hook in repository['hooks']] == recipe('lint')
    assert all(hook['language'] == 'system' and not hook['pass_filenames'] for hook in repository['hooks'])


def test_workflows_run_targets_of_make_on_each_python():
    jobs = yaml.safe_load(text('.github/workflows/ci.yml'))['jobs']
    targets = jobs['check']['strategy']['matrix']['target']
    assert {'lint', 'floors', 'docs', 'notebooks', 'wheel'} <= set(targets)
    assert all(recipe(target) for target in targets)
    assert [job['steps'][-1]['run'] for job in jobs.values()] == ['make test', 'make "$TARGET"']
    supported = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text('pyproject.toml'))
    assert jobs['test']['strategy']['matrix']['python'] == supported


def test_citation_has_the_version_and_the_paper_of_each_attention():
    citation = yaml.safe_load(text('CITATION.cff'))
    assert citation['version'] == __version__
    papers = {reference['url'].rpartition('/')[2] for reference in citation['references']}
    shipped = {attention.paper for attention in ATTENTIONS.values() if attention.layer.__module__.startswith(
        ('timm.', 'timm_se_plugin.'))}
    assert shipped - {''} == papers


def test_changelog_begins_with_the_version():
    assert re.search(r'^## (\S+)', text('CHANGELOG.md'), re.M)[1] == __version__


def test_the_site_has_the_help_of_each_command_and_the_changes():
    code = ("import sys; sys.path.insert(0, 'tools'); import mkdocs_pages\n"
            "for name in ('commands', 'changelog'):\n"
            "    print(mkdocs_pages.on_page_markdown(open(f'docs/{name}.md', encoding='utf-8').read()))\n"
            "print('heavy:', [name for name in ('torch', 'timm') if name in sys.modules])")
    site = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(f'## timm-se {command}\n\n```text\nusage: timm-se {command} ' in site for command in COMMANDS)
    assert f'## {__version__}' in site
    assert site.endswith('heavy: []\n')


def test_the_site_can_be_read_from_the_disk_and_has_no_broken_link():
    site = yaml.safe_load(text('mkdocs.yml'))
    assert 'offline' in site['plugins']
    assert site['strict']
    assert site['validation']['links']['anchors'] == 'warn'     # which `strict` makes an error


def test_references_in_docstrings_are_text_on_the_site():
    page = runpy.run_path(str(ROOT / 'tools' / 'mkdocs_pages.py'))['on_page_content']
    assert page(':func:<code>~timm_se_plugin.training.config.parse_options</code>') == '<code>parse_options</code>'
    assert page(':func:<code>timm.data.create_dataset</code>') == '<code>timm.data.create_dataset</code>'
