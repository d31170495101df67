"""The evaluator: what good means, who says so, and how that becomes preference pairs."""
