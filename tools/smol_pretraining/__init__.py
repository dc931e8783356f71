"""How the connector of the preset smol is trained, between an encoder and a language model that stay as they are."""
