"""PPO with a value model, a KL penalty to the reference and a value-only warm-up."""
