"""The engine under the four trainers. No trainer's loss in here."""
