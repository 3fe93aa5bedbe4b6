"""Control database, schema plan and apply, checks, and the controller."""
