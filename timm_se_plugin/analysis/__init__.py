"""Reading a trained network: what its gates do, by layer, class and channel."""

from .gates import Gate, find_gates, observed
from .statistics import GateStatistics, LayerStatistics, gate_statistics

__all__ = ['Gate', 'GateStatistics', 'LayerStatistics', 'find_gates', 'gate_statistics', 'observed']
