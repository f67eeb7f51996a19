"""Registered timm models."""
