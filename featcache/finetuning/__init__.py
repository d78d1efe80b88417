"""Whole networks trained on images: fine-tuned from a backbone's weights, or from scratch."""
