"""Hugging Face transformers loads what the package writes."""

import pytest
import torch
from PIL import Image

from timm_se_plugin.weights import write_model

transformers = pytest.importorskip('transformers')


@pytest.fixture
def folder(model, tmp_path):
    write_model(model, tmp_path / 'model', {'label_names': list('abcde')})
    return tmp_path / 'model'


def test_auto_model_gives_the_same_logits(model, folder, x):
    loaded = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixel_values=x).logits, model(x), rtol=1e-4, atol=1e-5)


def test_pipeline_names_the_classes(folder):
    classify = transformers.pipeline('image-classification', model=str(folder))
    found = classify(Image.new('RGB', (70, 50), 'red'))
    assert sorted(row['label'] for row in found) == list('abcde')
