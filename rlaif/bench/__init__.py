"""The training benchmark: this project's trainers against TRL's, equal before timed."""
