"""Recipes: training, sampling, precomputing, evaluating, assembled from components of any plugin."""
