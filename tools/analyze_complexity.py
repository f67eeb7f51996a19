"""Count parameters and MACs of the papers' networks, and write them beside the published numbers."""

import argparse
from pathlib import Path

import timm

import timm_se_plugin  # noqa: F401  (registers the models)
from timm_se_plugin.files.tables import replace_rows
from timm_se_plugin.measuring.complexity import complexity
from timm_se_plugin.measuring.published_costs import PUBLISHED


def main() -> None:
    """Read the arguments, count and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--output', type=Path, default=Path('results/complexity.csv'), help='table to write into')
    path = parser.parse_args().output
    rows = []
    for one in PUBLISHED:
        model = timm.create_model(one.model, device='meta', **one.options)
        cost = complexity(model, (3, one.size, one.size))
        rows.append({
            'network': one.network, 'source': one.source, 'model': one.model, 'attn': one.options.get('attn', ''),
            'size': one.size, 'parameters': cost.params, 'macs': cost.macs,
            'attention_parameters': cost.attention_params, 'paper_parameters_millions': one.parameters or '',
            'paper_gmacs': one.gmacs or '', 'timm': timm.__version__})
    replace_rows(path, rows, ('network', 'source'))


if __name__ == '__main__':
    main()
