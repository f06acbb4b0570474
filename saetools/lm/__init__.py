"""Subject models ("hosts"): transformers whose activations are decomposed."""
