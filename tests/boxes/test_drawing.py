"""Boxes and names in pictures, and the files that pictures are written to."""

import importlib.util

import numpy as np
import pytest

if importlib.util.find_spec('cv2') is None:
    pytest.skip('needs the [export], the [mmdet] or the [onedl] extra', allow_module_level=True)

from timm_se_plugin.boxes.drawing import draw, write_picture

BLACK = np.zeros((40, 160, 3), np.uint8)


def test_boxes_are_drawn_where_they_are():
    out = draw(BLACK, [(20, 15, 50, 35)], ['a'], classes=['b', 'a'])
    assert BLACK.max() == 0
    assert out[35, 20:51].any(1).all()
    assert not out[20:34, 22:49].any()


@pytest.mark.parametrize('names', [('Öl', 'Ül'), ('мяч', 'шар'), ('αυγό', 'νερό'), ('كرة', 'قلم')])
def test_names_that_are_not_ascii_are_drawn_with_their_own_letters(names):
    first, second = (draw(BLACK, [(5, 15, 120, 35)], [name]) for name in names)
    assert (first != second).any()  # both would be question marks, of the same number


def test_a_byte_of_a_name_that_is_not_utf8_is_drawn_as_in_tables():
    first, second = (draw(BLACK, [(5, 15, 120, 35)], [name]) for name in ('B\udcffr', r'B\udcffr'))
    assert (first == second).all()


def test_a_system_without_a_font_for_a_name_says_so(monkeypatch, caplog):
    monkeypatch.setattr('matplotlib.font_manager.findSystemFonts', lambda: [])
    draw(BLACK, [(5, 15, 120, 35)], ['\U00016a38'])  # a letter of the Bamum script
    assert '\U00016a38' in caplog.text


@pytest.mark.parametrize('name', ['é/球.png', '球.jpg'])
def test_a_path_that_is_not_ascii_is_written_without_opencv_seeing_it(tmp_path, monkeypatch, name):
    def fail(*_):
        raise AssertionError('OpenCV does not write to such a path on Windows')
    monkeypatch.setattr('cv2.imwrite', fail)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    write_picture(tmp_path / name, BLACK)
    import cv2
    assert (cv2.imdecode(np.fromfile(tmp_path / name, np.uint8), cv2.IMREAD_COLOR) == BLACK).all()


@pytest.mark.parametrize(('name', 'shape'), [
    ('a.jpg', (2, 70000, 3)), ('a.nothing', (2, 2, 3)), ('gone/a.png', (2, 2, 3))])
def test_a_picture_that_cannot_be_written_is_an_error_with_the_file(tmp_path, name, shape):
    with pytest.raises((ValueError, OSError), match=name):
        write_picture(tmp_path / name, np.zeros(shape, np.uint8))
