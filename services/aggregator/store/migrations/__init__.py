"""How the tables came to be as they are: a file a revision in ``versions``, never changed once released."""
