"""Preference-model pretraining: the reward model's trainer on broad, weakly labelled comparisons."""
