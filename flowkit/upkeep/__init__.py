"""Keeping a datastore in order: what takes the room, what is damaged, what may go."""
