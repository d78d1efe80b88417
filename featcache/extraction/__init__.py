"""Extraction: images through a backbone into a cache, once."""
