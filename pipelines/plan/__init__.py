"""`kubealign plan`: what a run will need, before it costs anything."""
