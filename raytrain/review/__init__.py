"""The review of labels: what is suspicious and why, the page to look at it, decisions, new shards, the effect.

Must not know Ray, or who asks.
"""
