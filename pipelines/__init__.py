"""The pipeline, its profiles and the command line. No torch in here; kfp only where a pipeline is made or run."""
