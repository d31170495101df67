"""What a recipe's stages need of a card, before anything is loaded, and how far that is off."""
