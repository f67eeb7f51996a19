"""The pages cannot lie: their Python runs, and the commands and options that they name exist."""

import contextlib
import functools
import io
import re
import shlex
from pathlib import Path

import pytest

from timm_se_plugin.commands import COMMANDS, main
from timm_se_plugin.placement import ATTENTIONS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / 'README.md', ROOT / 'results' / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
BLOCK = re.compile(r'(?:<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$', re.M | re.S)
COMMAND = re.compile(r'(?:^|[ `])(timm-se|make|python tools/\w+\.py|-m timm_se_plugin)((?: [^\n`#]*)?)')


def blocks(page, *languages):
    """Each block of one of these languages: its first line, its text, and why it is not run."""
    text = page.read_text(encoding='utf-8')
    for match in BLOCK.finditer(text):
        if match['language'] in languages:
            yield text.count('\n', 0, match.start('text')), match['text'], match['why']


def commands(page):
    """The words of each command line in the blocks of a page, and of each command in its sentences."""
    text = page.read_text(encoding='utf-8')
    lines = [line for _, block, _ in blocks(page, '') for line in block.replace('\\\n', ' ').splitlines()]
    lines += re.findall(r'`([^`\n]+)`', BLOCK.sub('', text))
    for line in lines:
        for name, rest in COMMAND.findall(line.split('  #')[0]):
            yield shlex.split(name + rest.split(' && ')[0])


NAMED = sorted({tuple(words) for page in PAGES for words in commands(page)})


@pytest.mark.parametrize('page', [page for page in PAGES if any(blocks(page, 'python'))], ids=lambda page: page.name)
@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::UserWarning', 'ignore::FutureWarning')
def test_python_of_a_page_runs(page, tmp_path, monkeypatch, request):
    """The blocks of a page run one after another, with the names of those before."""
    monkeypatch.chdir(tmp_path)
    registered = dict(ATTENTIONS)
    request.addfinalizer(lambda: (ATTENTIONS.clear(), ATTENTIONS.update(registered)))
    names = {'__name__': page.stem}
    for line, text, why in blocks(page, 'python'):
        if not why:
            exec(compile('\n' * line + text, str(page), 'exec'), names)


def test_pages_have_python():
    assert sum(not why for page in PAGES for _, _, why in blocks(page, 'python')) >= 15


@pytest.mark.parametrize('words', [words for words in NAMED if words[0] == 'make'], ids=' '.join)
def test_targets_of_make_exist(words):
    targets = re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(encoding='utf-8'), re.M)
    assert set(words[1:]) <= set(targets)


@functools.cache
def options_of(command):
    """The options that the help of a command names."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        for shown in (command, 'train') if command == 'ablate' else (command,):  # which passes options of a training on
            with pytest.raises(SystemExit):
                main([*shown.split(), '--help'])
    return set(re.findall(r'(?<![\w-])--?[a-z][\w-]*', text.getvalue()))


@pytest.mark.parametrize('words', [words for words in NAMED if words[0] == 'python'], ids=' '.join)
def test_tools_and_their_options_exist(words):
    text = (ROOT / words[1]).read_text(encoding='utf-8')
    command = re.search(r"main\(command='(.+)'\)", text)
    known = options_of(command[1]) if command else set(re.findall(r"'(--[\w-]+)'", text))
    assert not [word for word in words if word.startswith('--') and word not in known]


@pytest.mark.parametrize('words', [words for words in NAMED if words[0] in ('timm-se', '-m')], ids=' '.join)
def test_commands_and_their_options_exist(words):
    given = list(words[1:] if words[0] == 'timm-se' else words[2:])
    if not given or given[0].startswith('-'):
        return
    command = next((name for name in COMMANDS if given[:len(name.split())] == name.split()), None)
    assert command, f'timm-se has no command {" ".join(given[:2])}'
    assert not [word for word in given if re.match(r'--?[a-z]', word) and word not in options_of(command)]


def test_the_folder_of_a_run_is_called_as_the_first_page_says():
    from timm_se_plugin.training import parse_options
    from timm_se_plugin.training.run import _folder
    train, predict = (next(words for words in commands(ROOT / 'docs' / 'index.md') if words[:2] == ['timm-se', name])
                      for name in ('train', 'predict'))
    assert predict[-1] == _folder(parse_options(train[2:])).as_posix()


def test_options_in_sentences_exist():
    sources = [path for folder in ('timm_se_plugin', 'tools') for path in (ROOT / folder).rglob('*.py')]
    known = set(re.findall(r"'(--[a-z][\w-]*)'", ''.join(path.read_text(encoding='utf-8') for path in sources)))
    elsewhere = {'--help', '--device-modules'}     # of argparse and of timm's trainer
    named = {option for page in PAGES for text in re.findall(r'`([^`\n]+)`', BLOCK.sub('', page.read_text(
        encoding='utf-8'))) for option in re.findall(r'(?<![\w-])--[a-z][\w-]*', text)}
    assert len(named) > 30
    assert not {option for option in named - known if option.replace('--no-', '--') not in known | elsewhere}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    text = page.read_text(encoding='utf-8')
    named = re.findall(r'`((?:tests|tools|results|docs|timm_se_plugin|mmdet_configs)/[\w./-]*)`', text)
    elsewhere = {'results/speed-cuda.csv', 'tools/train.py', 'tools/test.py'}     # not yet written; MMDetection's
    assert not [name for name in named if name not in elsewhere and not (ROOT / name).exists()]


def test_the_map_names_every_public_module_in_the_row_of_its_folder():
    rows = dict(re.findall(r'^\| `(\w+)/` \| (.*)$', (ROOT / 'docs' / 'package-map.md').read_text('utf-8'), re.M))
    missing = [module for folder, row in rows.items() if folder != 'commands'
               for module in (ROOT / 'timm_se_plugin' / folder).glob('[!_]*.py') if f'`{module.name}`' not in row]
    assert missing == []


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_and_pictures_of_a_page_exist(page):
    text = BLOCK.sub('', page.read_text(encoding='utf-8'))
    targets = [target.partition('#')[0] for target in re.findall(r'\]\(([^)\s]+)\)', text) if '://' not in target]
    assert not [target for target in targets if target and not (page.parent / target).exists()]


def headings(page):
    """What a link calls each heading of a page, as GitHub and mkdocs do."""
    titles = re.findall(r'^#+ (.+)$', BLOCK.sub('', page.read_text(encoding='utf-8')), re.M)
    return {re.sub(r'[ -]+', '-', re.sub(r'[^\w -]', '', title.lower())) for title in titles}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_headings_that_a_page_links_to_exist(page):
    targets = re.findall(r'\]\(([\w./-]*)#([\w-]+)\)', BLOCK.sub('', page.read_text(encoding='utf-8')))
    assert not [(file, name) for file, name in targets if name not in headings(page.parent / file if file else page)]
