"""Channel attention for timm and MMDetection: Squeeze-and-Excitation and Selective Kernel by one flag."""

__version__ = '0.1.0'
