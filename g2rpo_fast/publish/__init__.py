"""A trained model for others: a plain transformers directory with a model card, and the hub."""
