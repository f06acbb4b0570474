"""Training: state, step, schedule, loop, checkpoint."""
