"""What users of the server import: its client, the engine without a server, the command line."""
