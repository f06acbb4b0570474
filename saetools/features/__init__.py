"""What each feature does: statistics, examples, effects on the logits, neighbours; and the store they are kept in."""
