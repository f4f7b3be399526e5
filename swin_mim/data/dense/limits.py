"""What masks may hold and where they lie. Needs nothing, so that the settings can be checked without torch."""

MAX_CLASSES = 1024
"""More than any data set has; masks with more are of instances, or no masks."""
MAX_NUMBER = 65535
"""Max class number in a file."""
IMAGE_FOLDERS, MASK_FOLDERS = ("images", "image"), ("masks", "mask", "annotations", "labels")
"""Names of the folders that are found by themselves."""
