"""Names that timm can build."""

from difflib import get_close_matches

import timm

__all__ = ['check_model']


def check_model(name: str) -> None:
    """Refuse a name that timm cannot build.

    Raises:
        ValueError: neither timm nor the plugin has a model of this name.
    """
    if ':' not in name and not timm.is_model(name.partition('.')[0]):  # hf-hub: and local-dir: name saved models
        close = get_close_matches(name, timm.list_models(), 3)
        hint = f'did you mean {", ".join(close)}?' if close else 'timm-se models lists all'
        raise ValueError(f'the model {name} is unknown; {hint}')
