"""Runs where people already look while they train: TensorBoard and MLflow."""
