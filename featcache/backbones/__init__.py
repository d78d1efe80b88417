"""Backbones: frozen networks, their weights, preprocessing and nodes."""
