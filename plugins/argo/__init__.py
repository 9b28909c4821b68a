"""Argo Workflows: flows as WorkflowTemplates."""
