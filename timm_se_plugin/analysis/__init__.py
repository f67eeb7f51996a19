"""Analysis of a trained network: its gates by layer, class and channel."""

from .gates import Gate, find_gates, observed
from .pictures import gate_map, unusual_images
from .pipeline import analyze, parse_analysis
from .report import write_report
from .scale import ScaleStatistics, enlarged, scale_statistics
from .statistics import GateStatistics, LayerStatistics, gate_statistics

__all__ = [
    'Gate', 'GateStatistics', 'LayerStatistics', 'ScaleStatistics', 'analyze', 'enlarged', 'find_gates', 'gate_map',
    'gate_statistics', 'observed', 'parse_analysis', 'scale_statistics', 'unusual_images', 'write_report']
