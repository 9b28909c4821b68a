"""Keeping a datastore: what is removed when, what takes the room, whether all is well."""
