"""What every step stands on. Imports no other room, and none of torch, kfp or kubernetes."""
