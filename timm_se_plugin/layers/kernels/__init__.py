"""The passes of a residual block as Triton kernels. Triton is imported when a GPU tensor first asks for a kernel."""

from .available import has_kernels

__all__ = ['has_kernels']
