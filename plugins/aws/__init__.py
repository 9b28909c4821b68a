"""AWS: the datastore on S3, steps on AWS Batch, secrets from Secrets Manager."""
