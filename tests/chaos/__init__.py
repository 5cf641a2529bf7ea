"""Trainings in which something goes wrong at a random moment, and what they really trained on."""
