"""The report, in a real browser where there is one."""

import base64
import io
import json
import re
import shutil
import subprocess

import pytest
import timm
import torch
from parity import images, randomised
from PIL import Image

from timm_se_plugin.analysis import gate_statistics, scale_statistics, unusual_images, write_report
from timm_se_plugin.analysis.pictures import UnusualImage
from timm_se_plugin.measuring.complexity import complexity

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
CLASSES = ['cat', '</script><b>', 'owl']
browser = pytest.mark.skipif(BROWSER is None, reason='no chromium or google-chrome is installed')


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    model = randomised(timm.create_model('sk_test_resnet_plugin', num_classes=3))
    data = [(images(6, 3, 64, 64, dtype=torch.float32), torch.tensor([0, 1, 0, 1, 1, 0]))]
    result = gate_statistics(model, data, CLASSES)
    path = tmp_path_factory.mktemp('report') / 'report.html'
    write_report(
        path, model, result, title='A title', note='six images', pictures=unusual_images(model, data, result, 2),
        scale=scale_statistics(model, lambda: data, CLASSES, (1, 2)), input_size=(3, 64, 64))
    return path, model, result


def chromium(*arguments):
    run = subprocess.run(
        [BROWSER, '--headless=new', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--virtual-time-budget=3000',
         *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


def rendered(page, tmp_path):
    return chromium(f'--user-data-dir={tmp_path / "profile"}', '--dump-dom', f'file://{page}')


def test_the_report_is_one_file_that_holds_the_statistics(report):
    path, model, result = report
    text = path.read_text()
    assert not re.search(r'(src|href)="(?!data:)|https?://(?!www\.w3\.org/2000/svg)', text)
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert data['classes'] == CLASSES[:2]  # the third has no images
    cost = complexity(model, (3, 64, 64))
    assert dict(map(tuple, data['cards']))['parameters'] == f'{cost.params:,}'
    shares = [value for name, value in data['cards'] if name == 'of which attention']
    assert shares == [f'{100 * cost.attention_params / cost.params:.2g} %',
                      f'{100 * cost.attention_macs / cost.macs:.2g} %']
    assert sum(params for _, _, params, _ in data['modules']) == cost.params
    layer = result.layers[2]
    shown = data['layers'][2]
    assert shown['name'] == layer.name
    assert shown['means'][1][0][5] == pytest.approx(layer.means[1, 0, shown['sampled'][5]].item(), abs=1e-5)
    assert all(picture['src'].startswith('data:image/png;base64,') for picture in data['pictures'])


def test_a_picture_with_transparency_is_shown_in_its_colours(report, tmp_path):
    _, model, result = report
    red = torch.tensor([1.0, 0.0, 0.0, 1.0])[:, None, None].expand(4, 8, 8)
    write_report(tmp_path / 'report.html', model, result, title='red', input_size=(3, 64, 64),
                 pictures=[UnusualImage(1.0, result.layers[0].name, red, 0, 0)])
    found = re.search('data:image/png;base64,([^"]+)', (tmp_path / 'report.html').read_text())[1]
    with Image.open(io.BytesIO(base64.b64decode(found))) as picture:
        assert picture.convert('RGB').getpixel((0, 0)) == (255, 0, 0)


@browser
def test_a_browser_draws_every_part(report, tmp_path):
    dom = rendered(report[0], tmp_path)
    body = dom[:dom.index('<script')]
    assert '<h1 id="title">A title</h1>' in body
    assert body.count('<svg') == 4  # specificity, saturation, channels, scale
    assert body.count('<polyline') == 2 + 2 + 3 + 2
    assert body.count('data:image/png') == 2
    assert body.count('<tr>') == 1 + len(report[2].layers)
    assert '&lt;/script&gt;&lt;b&gt;' in body
    assert 'NaN' not in body


@browser
def test_the_table_sorts_and_classes_hide(report, tmp_path):
    page = tmp_path / 'clicked.html'
    clicks = """<script>
    for (let i = 0; i < 2; i++) document.querySelectorAll('th button')[2].click();  // channels: down, then up
    document.querySelector('#channels .legend button').click();
    document.querySelector('#channels svg').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}));
    </script></html>"""
    page.write_text(report[0].read_text().replace('</html>', clicks))
    dom = rendered(page, tmp_path)
    body = dom[:dom.index('<script')]
    assert 'aria-sort="ascending"' in body
    channels = [int(cell) for cell in re.findall(
        r'<tr><td>[^<]*</td><td>[^<]*</td><td>(\d+)</td>', body)]
    assert channels == sorted(channels)
    chart = body[body.index('id="channels"'):body.index('id="scalebox"')]
    assert chart.count('<polyline') == 2
    assert 'aria-pressed="false"' in chart
    assert 'all classes' in chart[chart.index('class="read"'):]


@browser
@pytest.mark.parametrize(('width', 'scheme'), [(390, 'dark'), (1280, 'light')])
def test_it_fits_phone_and_desk_in_light_and_dark(report, tmp_path, width, scheme):
    # A frame of the width: browsers have a least width for their own windows.
    (tmp_path / 'report.html').write_text(report[0].read_text().replace('</html>', """<script>
    parent.postMessage(document.documentElement.scrollWidth, '*')</script></html>"""))
    (tmp_path / 'page.html').write_text(
        f'<body style="margin:0" id="b"><script>onmessage = e => document.title = "wide " + e.data</script>'
        f'<iframe src="report.html" style="width:{width}px;height:3000px;border:0"></iframe>')
    arguments = (f'--blink-settings=preferredColorScheme={int(scheme == "light")}', f'--window-size={width},3000',
                 f'--user-data-dir={tmp_path / "profile"}', f'file://{tmp_path / "page.html"}')
    assert f'<title>wide {width}</title>' in chromium('--dump-dom', *arguments)  # nothing sticks out to the side
    chromium(f'--screenshot={tmp_path / "shot.png"}', *arguments)
    picture = Image.open(tmp_path / 'shot.png').convert('RGB')
    background, first_series = ((255, 255, 255), (31, 111, 192)) if scheme == 'light' else (
        (18, 22, 27), (108, 176, 255))  # --bg and --c0 of report.html
    assert picture.getpixel((2, 2)) == background
    assert first_series in {colour for _, colour in picture.getcolors(1 << 24)}  # of the swatches in the legends
