"""How the preset nano is pretrained: stage 0 the vision encoder, stage 1 the connector and the language model."""
