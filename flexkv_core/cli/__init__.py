"""The command `flexkv`: what lies in the directories of the SSD tier, and whether it is right.

A second reader of the disk: it shares the format with the tier (`tiers.ssd.format`) and none of
its code, so that a mistake of one shows in the other.
"""
