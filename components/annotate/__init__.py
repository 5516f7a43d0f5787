"""Sampled responses out to annotators, their scores back in. See README.md."""
