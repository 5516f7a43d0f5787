"""The reward model, and its trainer, which preference-model pretraining uses as well."""
