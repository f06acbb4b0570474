"""saetools: train, evaluate and explore sparse dictionaries of transformer activations."""
