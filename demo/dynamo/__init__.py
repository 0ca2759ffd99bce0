"""`make demo-dynamo`: NVIDIA Dynamo's router knows what FlexKV keeps on every worker."""
