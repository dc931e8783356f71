"""gRPC as every service here uses it, without torch."""
