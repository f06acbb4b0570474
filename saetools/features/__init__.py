"""What each feature does."""
