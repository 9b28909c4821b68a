"""Airflow: flows as DAG files."""
