"""Kubernetes: steps as jobs of a cluster."""
