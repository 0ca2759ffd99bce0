"""The device functions alone: arithmetic. Contracts and grids are their launchers' business."""
