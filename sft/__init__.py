"""The assistant: what it is told, how it loads, speaks and learns from demonstrations."""
