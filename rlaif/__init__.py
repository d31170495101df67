"""The loop and its proof: preference training, safety, evaluation and export."""
