"""The passes of a residual block as Triton kernels. Triton is imported when a kernel is first needed."""

from .available import has_kernels

__all__ = ['has_kernels']
