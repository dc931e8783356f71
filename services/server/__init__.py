"""The LLM server: the frozen language model behind SplitService."""
