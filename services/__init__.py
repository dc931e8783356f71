"""The three services; each is started as python -m services.NAME."""
