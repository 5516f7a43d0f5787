"""Steps as jobs of a Kubernetes cluster."""
