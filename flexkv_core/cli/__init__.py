"""The command `flexkv`: what is in the directories of the SSD tier, and whether it is intact.

An independent reader of the disk: it shares the format with the tier (`tiers.ssd.format`) but none
of its code, so that a mistake of one shows in the other.
"""
