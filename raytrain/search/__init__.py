"""The search for settings: what is drawn, what is recorded, when it ends, who wins. Must not know Ray or torch."""
