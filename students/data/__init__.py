"""Training samples, their tokens, and the packed rows that a step consumes."""
