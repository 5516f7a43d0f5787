"""A seeded, tiny world in which a model of about a million parameters can really be aligned.

The world has facts (`world`), instructions about them with a known right answer (`tasks`), answers of
graded quality (`responses`), a ground truth that no trainer sees (`scorer`), noisy people who read it
(`annotators`) and, on top, the rows of every training stage (`generate`). Standard library only.
"""
