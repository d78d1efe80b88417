"""Heads: light classifiers on frozen features, as scikit-learn estimators; `catalogue` lists the kinds."""
