"""The multimodal model, cut in two: the edge half and the language half."""
